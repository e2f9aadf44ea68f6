"""The solvers of the sampler: exact where they should be, of the order that they claim, and equal to diffusers'."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchLCMScheduler

from pipeline.flow import solvers
from pipeline.flow.sampling import fixed_plan, sample_plan
from pipeline.flow.schedule import Schedule, base_levels
from pipeline.flow.solvers import Step


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def nothing(adapter):
    """No adapter to select."""


def bent(x, sigma):
    """A velocity that depends on x and sigma, and is not linear in either."""
    sigma = sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x)
    return torch.tanh(x) * (1 + sigma**2) + torch.cos(3 * sigma)


def levels_of(steps, dtype=torch.float64):
    return Schedule(mu=0.5).sigmas(base_levels(steps)).to(dtype)


def test_ab2_is_exact_for_a_velocity_that_is_linear_in_sigma():
    """The integral of a + b sigma from sigma to sigma + h is h (a + b (sigma + h / 2)), for steps of any length."""
    a, b = random(2, 3), random(2, 3, seed=1)
    before, step = (Step(random(2, 3), a + b * sigma, sigma, d) for sigma, d in ((0.9, -0.3), (0.6, -0.5)))
    after = solvers.ab2(step, before, lambda: pytest.fail("no noise is needed"))
    torch.testing.assert_close(after, step.x - 0.5 * (a + b * 0.35))
    torch.testing.assert_close(solvers.ab2(before, None, lambda: None), before.x - 0.3 * before.v)


@pytest.mark.parametrize("bend", [1, 2])
@pytest.mark.parametrize("solver, order", [("euler", 1), ("ab2", 2)])
def test_the_order_of_convergence(solver, order, bend):
    """dx / dsigma = x from 1 to 0 ends at x / e, on even levels and on others: half the step, 2^-order of the error."""
    errors, x = [], torch.ones(1, 1, dtype=torch.float64)
    for steps in (100, 200):
        plan = fixed_plan(torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** bend, solver=solver)
        errors.append(abs(sample_plan(lambda x, sigma: x, x, plan, nothing).item() - math.exp(-1)))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.03)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_the_targets_of_a_students_solver_lead_it_through_the_recorded_states(solver):
    states, sigmas = random(2, 6, 3, 4), levels_of(5)
    targets = solvers.TRAINABLE[solver](states, sigmas)
    assert targets.shape == (2, 5, 3, 4)
    met = []

    def velocity(x, sigma):
        met.append(x)
        return targets[:, len(met) - 1]

    end = sample_plan(velocity, states[:, 0], fixed_plan(sigmas, solver=solver), nothing)
    torch.testing.assert_close(torch.stack([*met, end], 1), states)


@pytest.mark.parametrize("steps", [2, 4, 8, 20])
def test_dpm2m_is_diffusers_on_the_same_levels(steps):
    sigmas, x = levels_of(steps), random(2, 4, 8, dtype=torch.float32)
    ours = sample_plan(bent, x, fixed_plan(sigmas, solver="dpm2m"), nothing)
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=True,
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas.float()  # it takes no levels, and has its own spacing
    scheduler.set_begin_index(0)
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        x = scheduler.step(bent(x, sigma.expand(2)), timestep, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
    euler = sample_plan(bent, random(2, 4, 8, dtype=torch.float32), fixed_plan(sigmas), nothing)
    assert torch.allclose(ours, euler, atol=1e-5) == (steps == 2), "two steps are the first and the last"


def test_renoise_is_diffusers_sampler_of_consistency_models():
    sigmas, x = levels_of(4), random(2, 4, 8, dtype=torch.float32)
    draws, theirs = (torch.Generator().manual_seed(7) for _ in range(2))
    ours = sample_plan(
        bent, x, fixed_plan(sigmas, solver="renoise"), nothing, lambda step: torch.randn(x.shape, generator=draws)
    )
    scheduler = FlowMatchLCMScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas[:-1].tolist())
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        x = scheduler.step(bent(x, sigma.expand(2)), timestep, x, generator=theirs).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_the_last_step_of_renoise_draws_no_noise():
    step = Step(random(2, 3), random(2, 3, seed=1), 0.4, -0.4)
    end = solvers.renoise(step, None, lambda: pytest.fail("no noise is left at sigma = 0"))
    torch.testing.assert_close(end, step.x - 0.4 * step.v)


def test_every_image_and_step_has_noise_of_its_own():
    seeds = {solvers.noise_seed(seed, step) for seed in range(20) for step in range(20)}
    assert len(seeds) == 400 and max(seeds) < 2**63


def test_an_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="student.solver must be one of euler, ab2, dpm2m, renoise, got 'heun'"):
        solvers.check("student.solver", "heun")
