import pytest
import torch

from pipeline import flow
from pipeline.objectives import OBJECTIVES, base, regression


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
