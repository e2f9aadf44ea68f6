"""The noise levels of published rivals, against their own numbers and diffusers' scheduler."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from pipeline.flow.rival_levels import rival_levels
from pipeline.flow.schedule import Schedule
from tests.test_schedule import QWEN_IMAGE, TOKENS_1024

TEACHER = Schedule.from_scheduler_config(QWEN_IMAGE, TOKENS_1024)

# README and generate_with_diffusers.py of Qwen-Image-Lightning; DiffSynth-Studio's example of MusePublic's 3 steps
# (exponential_shift_mu = ln 2.5, stock terminal 0.02), computed; model card of Qwen-Image-2.1-DMD2-2steps.
PUBLISHED = [
    ({"steps": 4, "shift": 3.0, "terminal": None}, [1, 0.9, 0.75, 0.5, 0]),
    ({"steps": 8, "shift": 3.0, "terminal": None}, [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0]),
    ({"steps": 3, "shift": 2.5, "terminal": 0.02}, [1, 0.6325, 0.02, 0]),
    ({"steps": 3, "shift": 2.5}, [1, 0.6325, 0.02, 0]),  # the teacher's own terminal is the same
    ({"steps": 2, "sigmas": (1.0, 0.5)}, [1, 0.5, 0]),
]


@pytest.mark.parametrize(("levels", "expected"), PUBLISHED)
def test_published_levels(levels, expected):
    sigmas = rival_levels(TEACHER, **levels)
    assert sigmas.dtype == torch.float64
    assert sigmas.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("steps", "terminal"), [(1, None), (3, None), (3, 0.02), (4, None), (8, 0.3), (15, 0.02)])
@pytest.mark.parametrize("shift", [1.0, 2.5, 3.0])
def test_a_fixed_shift_is_that_of_diffusers(steps, terminal, shift):
    config = QWEN_IMAGE | {"base_shift": math.log(shift), "max_shift": math.log(shift), "shift_terminal": terminal}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    u = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=u, mu=math.log(shift))
    sigmas = rival_levels(TEACHER, steps, shift, terminal)
    torch.testing.assert_close(sigmas.float(), scheduler.sigmas, rtol=0, atol=1e-6)
    if terminal is None:
        assert sigmas[:-1].tolist() == pytest.approx(shift * u / (1 + (shift - 1) * u))


def test_the_teachers_own_shift_is_that_of_the_stock_pipeline():
    """DiffSynth's 15 steps of Qwen-Image, and FLUX.1's 8: the dynamic shift and the terminal of the base."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(QWEN_IMAGE)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 15, 15), mu=TEACHER.mu)
    torch.testing.assert_close(rival_levels(TEACHER, 15).float(), scheduler.sigmas, rtol=0, atol=1e-6)
    plain = rival_levels(TEACHER, 15, terminal=None)
    assert plain[-2] > 0.06 and rival_levels(TEACHER, 15)[-2] == pytest.approx(0.02)


def test_a_single_step_cannot_be_stretched():
    with pytest.raises(ValueError, match="stretch_terminal needs a last sigma below 1, got 1.0"):
        rival_levels(TEACHER, 1, shift=3.0)
