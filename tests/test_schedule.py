import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from pipeline.flow.schedule import (
    Schedule,
    base_levels,
    check_scheduler,
    resolution_mu,
    shift,
    stretch_terminal,
    unshift,
)

FLUX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
QWEN_IMAGE = FLUX | {"max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02}
TOKENS_1024 = 64 * 64  # latent tokens of 1024 x 1024 pixels
OFFICIAL_STEPS = [0, 2, 4, 6, 8, 10, 20, 30, 40, 49]

# The timestep lists in the official Glance code, arXiv 2512.02899: slow | fast.
OFFICIAL_TIMESTEPS = {
    "flux": (
        FLUX,
        [1000, 986.9786, 973.2042, 958.6094, 943.1188, 926.6473, 825.7017, 677.9868, 441.1997, 60.5503],
    ),
    "qwen_image": (
        QWEN_IMAGE,
        [1000, 979.1915, 957.5157, 934.9171, 911.3354, 886.7053, 745.0728, 562.9505, 320.0802, 20],
    ),
}


@pytest.mark.parametrize("family", OFFICIAL_TIMESTEPS)
def test_official_timesteps_are_entries_of_the_50_step_schedule(family):
    config, expected = OFFICIAL_TIMESTEPS[family]
    schedule = Schedule.from_scheduler_config(config, TOKENS_1024)
    timesteps = 1000 * schedule.sigmas(base_levels(50))[OFFICIAL_STEPS]
    assert timesteps.tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", OFFICIAL_TIMESTEPS)
def test_official_timesteps_follow_from_ten_base_levels_alone(family):
    config, expected = OFFICIAL_TIMESTEPS[family]
    schedule = Schedule.from_scheduler_config(config, TOKENS_1024)
    u = [1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.60, 0.40, 0.20, 0.02]
    assert (1000 * schedule.sigmas(u)[:-1]).tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("config", "mu"), [(FLUX, 1.15), (QWEN_IMAGE, 0.69355)])
def test_mu_at_1024(config, mu):
    assert Schedule.from_scheduler_config(config, TOKENS_1024).mu == pytest.approx(mu, abs=1e-5)


@pytest.mark.parametrize("num_tokens", [16, 256, 6032])
@pytest.mark.parametrize(
    "config",
    [
        FLUX,
        QWEN_IMAGE,
        FLUX | {"use_dynamic_shifting": False, "shift": 3.0},
        FLUX | {"time_shift_type": "linear"},
    ],
)
def test_sigmas_equal_those_of_diffusers(config, num_tokens):
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = resolution_mu(num_tokens, 256, config["max_image_seq_len"], 0.5, config["max_shift"])
    u = base_levels(8)
    scheduler.set_timesteps(sigmas=u.tolist(), mu=mu if config["use_dynamic_shifting"] else None)
    sigmas = Schedule.from_scheduler_config(config, num_tokens).sigmas(u)
    assert sigmas.dtype == torch.float64
    torch.testing.assert_close(sigmas, scheduler.sigmas.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(1000 * sigmas[:-1], scheduler.timesteps.double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mu", [-1.0, 0.0, 0.5, 1.15])
def test_shift_round_trips_and_multiplies_the_odds(mu):
    u = base_levels(50)
    torch.testing.assert_close(unshift(shift(u, mu), mu), u)
    sigma = shift(u[1:], mu)
    odds = sigma / (1 - sigma)
    torch.testing.assert_close(odds, math.exp(mu) * u[1:] / (1 - u[1:]))


def test_base_levels():
    assert base_levels(4).tolist() == [1, 0.75, 0.5, 0.25]
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        base_levels(0)


@pytest.mark.parametrize("config", [FLUX, QWEN_IMAGE])
@pytest.mark.parametrize("num_steps", [2, 8, 50])
def test_a_run_goes_from_noise_to_data(config, num_steps):
    sigmas = Schedule.from_scheduler_config(config, 16).sigmas(base_levels(num_steps))
    assert sigmas.diff().sum() == pytest.approx(-1)
    assert (sigmas.diff() < 0).all() and sigmas[0] == 1 and sigmas[-1] == 0


def test_resolution_mu_passes_through_both_points():
    assert resolution_mu(256, 256, 4096, 0.5, 1.15) == pytest.approx(0.5)
    assert resolution_mu(4096, 256, 4096, 0.5, 1.15) == pytest.approx(1.15)


def test_stretch_terminal_moves_the_last_level_and_keeps_the_first():
    stretched = stretch_terminal(torch.tensor([1.0, 0.5, 0.1]), 0.02)
    assert stretched[[0, -1]].tolist() == pytest.approx([1, 0.02])
    with pytest.raises(ValueError, match="needs a last sigma below 1, got 1"):
        stretch_terminal(torch.tensor([1.0]), 0.02)


@pytest.mark.parametrize(
    ("u", "message"),
    [
        ([], "at least one base level"),
        ([[1.0]], "at least one base level"),
        ([1.1, 0.5], r"u must decrease within \(0, 1\], got \[1.1, 0.5\]"),
        ([1.0, 0.0], "u must decrease"),
        ([0.5, 0.5], "u must decrease"),
    ],
)
def test_sigmas_refuses_levels_that_are_no_path(u, message):
    with pytest.raises(ValueError, match=message):
        Schedule(mu=0.5).sigmas(u)


STATIC = FLUX | {"use_dynamic_shifting": False, "shift": 3.0}
REFUSED = [
    (FLUX, {"_class_name": "DDIMScheduler"}, "must be a FlowMatchEulerDiscreteScheduler, got DDIMScheduler; choose a"),
    (FLUX, {"use_karras_sigmas": True}, "use_karras_sigmas must be false, got True"),
    (FLUX, {"use_exponential_sigmas": True}, "use_exponential_sigmas must be false, got True"),
    (FLUX, {"use_beta_sigmas": True}, "use_beta_sigmas must be false, got True"),
    (FLUX, {"use_beta_sigmas": None}, "use_beta_sigmas must be false, got None"),  # diffusers cannot add it up
    (FLUX, {"use_flow_sigmas": "false"}, "use_flow_sigmas must be false, got 'false'"),
    (FLUX, {"invert_sigmas": True}, "invert_sigmas must be false, got True"),
    (FLUX, {"stochastic_sampling": True}, "stochastic_sampling must be false"),
    (FLUX, {"num_train_timesteps": 500}, "num_train_timesteps must be 1000, got 500"),
    (FLUX, {"num_train_timesteps": 1000.0}, "num_train_timesteps must be 1000, got 1000.0"),
    (FLUX, {"num_train_timesteps": None}, "num_train_timesteps must be 1000, got None"),
    (FLUX, {"use_dynamic_shifting": "false"}, "use_dynamic_shifting must be true or false, got 'false'"),
    (FLUX, {"time_shift_type": "cosine"}, "time_shift_type must be exponential or linear, got 'cosine'"),
    (STATIC, {"time_shift_type": None}, "time_shift_type must be exponential or linear, got None"),
    (FLUX, {"shift_terminal": 1}, "shift_terminal must be null, or at least 0 and below 1, got 1"),
    (FLUX, {"shift_terminal": -0.02}, "shift_terminal must be null, or at least 0 and below 1, got -0.02"),
    (FLUX, {"shift_terminal": "0.02"}, "shift_terminal must be null, or at least 0 and below 1, got '0.02'"),
    (STATIC, {"shift": 0}, "shift must be a number above 0, got 0"),
    (STATIC, {"shift": -3.0}, "shift must be a number above 0, got -3.0"),
    (STATIC, {"shift": None}, "shift must be a number above 0, got None"),
    (STATIC, {"shift": "3.0"}, "shift must be a number above 0, got '3.0'"),
    (STATIC, {"shift": True}, "shift must be a number above 0, got True"),
    (STATIC, {"shift": math.nan}, "shift must be a number above 0, got nan"),
    (STATIC, {"shift": 10**400}, "shift must be a number above 0, got 1000"),
    (STATIC, {"shift": 1e9}, r"shift must give a factor on the odds of u from e\^-10 to e\^10 .* got e\^20.7"),
    (FLUX, {"base_shift": None}, "base_shift must be a number, got None"),
    (FLUX, {"max_shift": "high"}, "max_shift must be a number, got 'high'"),
    (FLUX, {"base_image_seq_len": None}, "base_image_seq_len must be a number, got None"),
    (FLUX, {"max_image_seq_len": 256}, "max_image_seq_len must differ from base_image_seq_len, got 256"),
    (FLUX, {"max_shift": -900}, r"base_shift and max_shift must give a factor .* for 4096 tokens, got e\^-900"),
    (FLUX, {"time_shift_type": "linear", "max_shift": -1}, r"base_shift and max_shift must give .*, got e\^-inf"),
    (FLUX, {"max_shift": 1e308, "base_shift": -1e308}, "base_shift and max_shift must give a factor"),
]


@pytest.mark.parametrize(("config", "change", "message"), REFUSED)
def test_a_scheduler_whose_levels_are_others_is_refused(config, change, message):
    with pytest.raises(ValueError, match=f"^the scheduler('s)? ?{message}"):
        Schedule.from_scheduler_config(config | change, TOKENS_1024)


def test_a_scheduler_configuration_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match=r"the scheduler's configuration must be a JSON object, got \[\]"):
        check_scheduler([])


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (FLUX, {"shift": None}),
        (FLUX, {"shift_terminal": None}),
        (FLUX, {"shift_terminal": 0}),
        (FLUX, {"base_image_seq_len": 4096, "max_image_seq_len": 256}),
        (FLUX, {"base_shift": -0.5, "max_shift": 0}),
        (STATIC, {"shift": 1}),
        (STATIC, {"use_dynamic_shifting": None}),
        (STATIC, {"base_shift": None, "max_shift": None, "base_image_seq_len": 4096}),
        (STATIC, {"use_karras_sigmas": False, "use_beta_sigmas": 0, "shift_terminal": 0.1}),
        ({"_class_name": FLUX["_class_name"]}, {}),
    ],
)
def test_odd_values_that_diffusers_takes_give_its_levels(config, change):
    config = config | change
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    u, mu = base_levels(8), None
    if config.get("use_dynamic_shifting"):
        keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(1024, *(config[key] for key in keys))
    scheduler.set_timesteps(sigmas=u.tolist(), mu=mu)
    sigmas = Schedule.from_scheduler_config(config, 1024).sigmas(u)
    torch.testing.assert_close(sigmas, scheduler.sigmas.double(), rtol=0, atol=1e-6)
