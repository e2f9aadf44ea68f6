"""The consistent path lies on one grid; the official one does what the code at github.com/CSU-JPG/Glance does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from pipeline.flow import stepping
from pipeline.flow.sampling import StepPlan, sample_plan
from pipeline.flow.schedule import SCHEDULER_CLASS, Schedule
from pipeline.flow.stepping import PATHS, Steps
from tests.tiny import FLUX_SCHEDULE, QWEN_SCHEDULE

CONFIGS = {"flux": FLUX_SCHEDULE, "qwen_image": QWEN_SCHEDULE}
U = (1, 0.96, 0.92, 0.88, 0.84, 0.80, 0.60, 0.40, 0.20, 0.02)
STEPS = Steps(U, phases=(5, 5), teacher_steps=50, height=1024, width=1024)
TOLD = {  # train_Glance_flux.py and pipeline/qwen.py there
    "flux": [1000, 986.9786, 973.2042, 958.6094, 943.1188, 926.6473, 825.7017, 677.9868, 441.1997, 60.5503],
    "qwen_image": [1000, 979.1915, 957.5157, 934.9171, 911.3354, 886.7053, 745.0728, 562.9505, 320.0802, 20],
}
MOVED = {  # -d_sigma by diffusers' own scheduler: the first 5 of linspace(1, 1 / 50, 50), then linspace(1, 1 / 5, 5)
    "flux": [0.006420, 0.006601, 0.006789, 0.006985, 0.007190, 0.073353, 0.100946, 0.147715, 0.236787, 0.441200],
    "qwen_image": [0.010299, 0.010509, 0.010726, 0.010950, 0.011180, 0.163297, 0.204142, 0.262501, 0.350060, 0.02],
}
TOO_FAR = {"flux": 0.033986, "qwen_image": 0.053665}


def schedule_of(family):
    """As a backbone's: 16 pixels a token."""
    config = {"_class_name": SCHEDULER_CLASS, **CONFIGS[family]}
    return lambda height, width: Schedule.from_scheduler_config(config, height // 16 * width // 16)


@pytest.mark.parametrize("size", [(1024, 1024), (928, 1664)])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_consistent_path_moves_from_what_is_told_to_what_is_told_next(family, size):
    sigmas, moves = PATHS["consistent"](replace(STEPS, height=size[0], width=size[1]), schedule_of(family))
    torch.testing.assert_close(sigmas[:-1] + moves, sigmas[1:])
    assert moves.sum().item() == pytest.approx(-1, abs=1e-12)
    plan, told = StepPlan(sigmas, (None,) * 10, moves), []
    sample_plan(lambda x, sigma: told.append(1000 * sigma.item()) or x, torch.ones(1, 1), plan, lambda adapter: None)
    np.testing.assert_allclose(told, 1000 * schedule_of(family)(*size).sigmas(U)[:-1], atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_official_path_has_the_official_timesteps_and_moves(family):
    sigmas, moves = PATHS["official"](STEPS, schedule_of(family))
    np.testing.assert_allclose(1000 * sigmas[:-1], TOLD[family], atol=1e-3)
    np.testing.assert_allclose(-moves, MOVED[family], atol=1e-6)
    assert -moves.sum().item() - 1 == pytest.approx(TOO_FAR[family], abs=1e-5)


def test_the_official_timesteps_stay_where_the_resolution_moves_the_latents_otherwise():
    square, wide = (
        PATHS["official"](replace(STEPS, height=height, width=width), schedule_of("qwen_image"))
        for height, width in ((1024, 1024), (928, 1664))
    )
    assert torch.equal(square[0], wide[0]) and not torch.allclose(square[1], wide[1], atol=1e-4)


@pytest.mark.parametrize("size", [(1024, 1024), (928, 1664)])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_official_path_is_two_runs_of_the_stock_scheduler(family, size):
    """As the official pipelines do: each phase sets its own levels, the timesteps are put in their place."""
    scheduler, schedule = FlowMatchEulerDiscreteScheduler(**CONFIGS[family]), schedule_of(family)
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(10, 1, 4, 8, generator=generator)
    x = noise = torch.randn(1, 4, 8, generator=generator)
    for first, count in ((0, 50), (5, 5)):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / count, count), mu=schedule(*size).mu)
        scheduler.set_begin_index(0)
        for step in range(first, first + 5):
            x = scheduler.step(fields[step], torch.tensor(float(TOLD[family][step])), x, return_dict=False)[0]

    told = []

    def velocity(x, sigma):
        told.append(1000 * sigma.item())
        return fields[len(told) - 1]

    sigmas, moves = PATHS["official"](replace(STEPS, height=size[0], width=size[1]), schedule)
    ours = sample_plan(velocity, noise, StepPlan(sigmas, (None,) * 10, moves), lambda adapter: None)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(told, TOLD[family], atol=1e-3)


@pytest.mark.parametrize("value", ["best", None, ["official"]])
def test_another_path_is_refused(value):
    with pytest.raises(ValueError, match="^path must be one of consistent, official, got "):
        stepping.check("path", value)
