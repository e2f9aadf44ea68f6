from itertools import pairwise

import pytest
import torch

from pipeline.flow.guidance import SteeredGuidance, true_cfg
from pipeline.flow.sampling import StepPlan, euler, euler_states, fixed_plan, sample_plan
from pipeline.flow.schedule import Schedule, base_levels
from pipeline.partition import compute, two_phase_plan
from tests.test_partition import params_with


def sigmas_of(num_steps):
    return Schedule(mu=0.5).sigmas(base_levels(num_steps))


@pytest.fixture
def ends():
    return torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_euler_is_exact_on_a_straight_path(ends, num_steps):
    x_0, noise = ends
    x = euler(lambda x, sigma: noise - x_0, noise, sigmas_of(num_steps))
    torch.testing.assert_close(x, x_0)


def test_euler_converges_at_first_order():
    """dx / dsigma = x from 1 to 0 ends at x / e; half the step, half the error."""
    x = torch.ones(1, 1, dtype=torch.float64)
    errors = [
        abs(euler(lambda x, sigma: x, x, torch.linspace(1, 0, n + 1, dtype=torch.float64)).item() - 0.36787944)
        for n in (100, 200)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.02)


def test_euler_states_are_the_states_on_the_way(ends):
    x_0, noise = ends
    sigmas = sigmas_of(5)
    states = list(euler_states(lambda x, sigma: noise - x_0, noise, sigmas))
    assert len(states) == 6 and states[0] is noise
    for state, sigma in zip(states, sigmas, strict=True):
        torch.testing.assert_close(state, (1 - sigma) * x_0 + sigma * noise)


def test_the_model_is_told_the_level_that_the_step_starts_at(ends):
    told = []

    def velocity(x, sigma):
        told.append(sigma)
        return x

    sigmas = sigmas_of(4)
    euler(velocity, ends[0], sigmas)
    assert [sigma.tolist() for sigma in told] == [[sigma] * 3 for sigma in sigmas[:-1].tolist()]


def test_latents_of_16_bits_are_summed_in_float32():
    x, v = torch.tensor([[256.0]], dtype=torch.bfloat16), torch.tensor([[-1.5]], dtype=torch.bfloat16)
    stepped = euler(lambda x, sigma: v, x, torch.tensor([1.0, 0.0]))
    assert stepped.dtype == torch.bfloat16 and stepped.item() == 258  # 257.5 rounded once


def test_two_phase_plan_switches_at_the_handoff(ends):
    partition = compute(params_with(slow_steps=3, fast_steps=5), Schedule(mu=0.5))
    plan = two_phase_plan(partition)
    assert plan.adapters == ("slow",) * 3 + ("fast",) * 5
    assert plan.sigmas[3] == partition.handoff
    selected, acting = [], []

    def velocity(x, sigma):
        acting.append((selected[-1], sigma[0].item()))
        return x

    sample_plan(velocity, ends[0], plan, selected.append)
    assert selected == ["slow", "fast"]
    assert acting == list(zip(plan.adapters, partition.sigmas[:-1], strict=True))


def test_two_phase_plan_takes_other_adapters():
    partition = compute(params_with(slow_steps=1, fast_steps=1), Schedule(mu=0.5))
    assert two_phase_plan(partition, slow="fast", fast=None).adapters == ("fast", None)


def test_a_plan_with_one_adapter_is_euler(ends):
    selected = []
    sigmas = sigmas_of(6)

    def velocity(x, sigma):
        return x * sigma[:, None, None]

    x = sample_plan(velocity, ends[0], fixed_plan(sigmas, "slow"), selected.append)
    assert torch.equal(x, euler(velocity, ends[0], sigmas)) and selected == ["slow"]


def test_each_adapter_acts_in_its_own_steps_alone(ends):
    """With velocities that are constant per adapter, x moves by the sum of d_sigma v."""
    plan = StepPlan(sigmas_of(3), ("slow", None, "fast"))
    speed, selected = {"slow": 1.0, None: 10.0, "fast": 100.0}, []
    x = sample_plan(lambda x, sigma: torch.full_like(x, speed[selected[-1]]), ends[0], plan, selected.append)
    moved = sum((later - now) * speed[a] for (now, later), a in zip(pairwise(plan.sigmas), plan.adapters, strict=True))
    torch.testing.assert_close(x - ends[0], torch.full_like(x, moved.item()))


def test_a_plan_may_move_otherwise_than_it_tells(ends):
    told = []

    def velocity(x, sigma):
        told.append(sigma[0].item())
        return torch.ones_like(x)

    plan = StepPlan(sigmas_of(2), (None, None), moves=torch.tensor([-0.75, -0.5], dtype=torch.float64))
    x = sample_plan(velocity, ends[0], plan, lambda adapter: None)
    assert told == sigmas_of(2)[:-1].tolist()
    torch.testing.assert_close(ends[0] - x, torch.full_like(x, 1.25))


def test_sampling_needs_no_gradients(ends):
    x = ends[0].clone().requires_grad_()
    assert not euler(lambda x, sigma: x, x, sigmas_of(2)).requires_grad
    assert not sample_plan(lambda x, sigma: x, x, fixed_plan(sigmas_of(2)), lambda adapter: None).requires_grad


def test_a_plan_needs_one_adapter_and_one_move_per_step():
    with pytest.raises(ValueError, match="a plan of 2 steps needs as many adapters, got 1"):
        StepPlan(sigmas_of(2), ("slow",))
    with pytest.raises(ValueError, match="a plan of 2 steps needs as many moves, got 3"):
        StepPlan(sigmas_of(2), (None, None), torch.zeros(3))


def test_a_plan_refuses_what_it_cannot_follow():
    with pytest.raises(ValueError, match="a plan of 2 steps needs as many modes of guidance, got 1"):
        fixed_plan(sigmas_of(2), guidance=("asked",))
    with pytest.raises(ValueError, match="guidance must be one of asked, off, reused, got 'sometimes'"):
        fixed_plan(sigmas_of(2), guidance=("asked", "sometimes"))
    with pytest.raises(ValueError, match="solver must be one of euler, ab2, dpm2m, renoise, got 'heun'"):
        fixed_plan(sigmas_of(2), solver="heun")
    with pytest.raises(ValueError, match="a plan with moves of its own needs the solver euler, got ab2"):
        fixed_plan(sigmas_of(2), moves=torch.tensor([-0.75, -0.5]), solver="ab2")


def test_a_run_refuses_a_plan_that_needs_guidance_or_noise_that_it_has_not(ends):
    with pytest.raises(ValueError, match="a plan with modes of guidance needs a guided velocity, got one without"):
        sample_plan(lambda x, sigma: x, ends[0], fixed_plan(sigmas_of(1), guidance=("off",)), lambda adapter: None)
    with pytest.raises(ValueError, match="the solver renoise needs fresh noise, got none"):
        sample_plan(lambda x, sigma: x, ends[0], fixed_plan(sigmas_of(2), solver="renoise"), lambda adapter: None)


def test_each_step_gets_its_guidance_as_the_plan_says(ends):
    """Guidance of scale 3 around v = 1 and v_uncond = 0: 3 where asked, 1 where off, 1 + 2 where reused."""

    def one(x, sigma):
        return torch.ones_like(x)

    steered = SteeredGuidance(one, lambda cond: true_cfg(cond, lambda x, sigma: torch.zeros_like(x), 3.0))
    plan = fixed_plan(torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64), guidance=("asked", "off", "reused"))
    x = sample_plan(steered, ends[0], plan, lambda adapter: None)
    torch.testing.assert_close(ends[0] - x, torch.full_like(x, 3 * 0.5 + 1 * 0.3 + 3 * 0.2))
