from dataclasses import replace

import pytest
import torch

from pipeline import flow
from pipeline.objectives import OBJECTIVES, base, consistency, regression, rollout


def random_sample(size=3):
    generator = torch.Generator().manual_seed(0)
    names = ("x", "x_next", "x_0", "noise")
    latents = {name: torch.randn(size, 4, 2, generator=generator) for name in names}
    sigma, sigma_next = torch.tensor([1.0, 0.8, 0.5]), torch.tensor([0.7, 0.2, 0.0])
    target = flow.secant(latents["x"], latents["x_next"], sigma, sigma_next)
    levels = torch.tensor([1.0, 0.6, 0.0]).expand(size, -1)
    return base.Sample(**latents, sigma=sigma, sigma_next=sigma_next, target=target, levels=levels)


def asked(loss, sample, answer):
    """The (x, sigma) that a loss asks the student for, and its value when the student gives `answer`."""
    calls = []

    def student(x, sigma):
        calls.append((x, sigma))
        return answer

    losses = loss(sample, student, None)
    ((x, sigma),) = calls
    return x, sigma, losses


def test_the_trajectory_loss_is_zero_where_an_euler_step_lands_on_the_teacher():
    sample = random_sample()
    step = (sample.sigma_next - sample.sigma)[:, None, None]
    x, sigma, losses = asked(regression.trajectory, sample, (sample.x_next - sample.x) / step)
    assert torch.equal(x, sample.x) and torch.equal(sigma, sample.sigma)
    torch.testing.assert_close(losses, torch.zeros(3))


def test_the_flow_loss_is_zero_where_the_velocity_leads_from_noise_to_data():
    sample = random_sample()
    x, sigma, losses = asked(regression.noise_to_data, sample, sample.noise - sample.x_0)
    levels = sample.sigma[:, None, None]
    torch.testing.assert_close(x - levels * (sample.noise - sample.x_0), sample.x_0)
    torch.testing.assert_close(x + (1 - levels) * (sample.noise - sample.x_0), sample.noise)
    assert torch.equal(sigma, sample.sigma)
    torch.testing.assert_close(losses, torch.zeros(3))


@pytest.mark.parametrize("name", ["trajectory", "flow"])
def test_each_row_has_its_own_mean_squared_error(name):
    sample = random_sample()
    _, _, right = asked(OBJECTIVES[name].loss, sample, torch.zeros(3, 4, 2))
    off = torch.tensor([0.0, 1.0, 2.0])[:, None, None]
    secant = (sample.x_next - sample.x) / (sample.sigma_next - sample.sigma)[:, None, None]
    target = {"trajectory": secant, "flow": sample.noise - sample.x_0}[name]
    _, _, losses = asked(OBJECTIVES[name].loss, sample, target + off)
    torch.testing.assert_close(losses, torch.tensor([0.0, 1.0, 4.0]))
    torch.testing.assert_close(right, (target**2).mean((1, 2)))


def test_learning_rates():
    assert [base.cosine(done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert base.constant(0.7) == 1
    assert (OBJECTIVES["trajectory"].rate, OBJECTIVES["flow"].rate) == (base.cosine, base.constant)


def straight(sample):
    """The sample on the straight path from its noise to its x_0."""
    ends = sample.x_0, sample.noise
    x, x_next = flow.interpolate(*ends, sample.sigma), flow.interpolate(*ends, sample.sigma_next)
    return replace(sample, x=x, x_next=x_next)


def test_consistency_is_exact_on_a_straight_path():
    """The velocity noise - x_0 has loss 0 and gradient 0, and any constant beside it has a higher loss."""
    sample = straight(random_sample())
    off = torch.zeros(3, 4, 2, requires_grad=True)
    losses = consistency.consistency(sample, lambda x, sigma: sample.noise - sample.x_0 + off, None)
    torch.testing.assert_close(losses.detach(), torch.zeros(3), atol=1e-6, rtol=0)
    losses.sum().backward()
    torch.testing.assert_close(off.grad, torch.zeros(3, 4, 2), atol=1e-4, rtol=0)
    others = consistency.consistency(sample, lambda x, sigma: sample.noise - sample.x_0 + 0.1, None)
    d = 0.1 * (sample.sigma - sample.sigma_next)
    torch.testing.assert_close(others, (d**2 + 1e-6).sqrt() - 1e-3)


def test_the_huber_loss_of_consistency_by_hand():
    """d = 0.75 c and 0 over two elements: (sqrt(0.5625 + 1) - 1) c / 2 = c / 8."""
    sample = random_sample(3)
    x = sample.x_next.clone()
    x[:, ::2] += 0.75e-3
    losses = consistency.consistency(replace(sample, x=x), lambda x, sigma: torch.zeros_like(x), None)
    torch.testing.assert_close(losses, torch.full((3,), 1.25e-4), rtol=1e-3, atol=0)


def test_the_target_of_consistency_has_no_gradient_and_is_the_image_itself_at_the_end():
    sample, calls = random_sample(), []

    def student(x, sigma):
        calls.append((x, sigma, torch.is_grad_enabled()))
        return torch.full_like(x, 9.0)

    losses = consistency.consistency(sample, student, None)
    assert [grad for *_, grad in calls] == [False, True]
    assert torch.equal(calls[0][0], sample.x_next) and torch.equal(calls[0][1], sample.sigma_next)
    assert torch.equal(calls[1][0], sample.x) and torch.equal(calls[1][1], sample.sigma)
    d = sample.x[2] - 0.5 * 9 - sample.x_next[2]  # its sigma_next is 0
    torch.testing.assert_close(losses[2], ((d**2 + 1e-6).sqrt() - 1e-3).mean())


def test_rollout_is_zero_where_the_steps_land_on_the_teachers_state():
    sample, told = random_sample(), []

    def student(x, sigma):
        told.append(sigma)
        return sample.x - sample.x_next  # from level 1 to 0, in steps of 0.4 and 0.6

    torch.testing.assert_close(rollout.rollout(sample, student, None), torch.zeros(3))
    assert torch.equal(torch.stack(told, 1), sample.levels[:, :-1])


def test_the_gradient_of_rollout_flows_through_all_steps():
    """With v = a x the end is (1 - 0.4 a) (1 - 0.6 a) x, whose derivative by a is (-1 + 0.48 a) x."""
    sample, a = random_sample(), torch.tensor(0.7, requires_grad=True)
    rollout.rollout(sample, lambda x, sigma: a * x, None).sum().backward()
    end = (1 - 0.4 * 0.7) * (1 - 0.6 * 0.7) * sample.x
    expected = (2 * (end - sample.x_next) * (-1 + 0.48 * 0.7) * sample.x).mean((1, 2)).sum()
    torch.testing.assert_close(a.grad, expected)


def test_the_parts_of_the_path_that_each_objective_samples():
    steps = ((0, 2), (2, 5))
    parts = {name: objective.samples(steps) for name, objective in OBJECTIVES.items()}
    assert parts == {
        "trajectory": steps,
        "flow": steps,
        "consistency": ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)),
        "rollout": ((0, 5),),
    }
