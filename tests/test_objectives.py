import pytest
import torch

from pipeline import objectives


def random_sample(size=3):
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(size, 4, 2, generator=generator) for _ in range(4)]
    return objectives.Sample(*latents, sigma=torch.tensor([1.0, 0.8, 0.5]), sigma_next=torch.tensor([0.7, 0.2, 0.0]))


def test_an_euler_step_with_the_trajectory_target_lands_on_the_teacher():
    sample = random_sample()
    x, target = objectives.trajectory(sample)
    step = (sample.sigma_next - sample.sigma)[:, None, None]
    torch.testing.assert_close(x + step * target, sample.x_next)


def test_the_flow_target_leads_from_noise_to_data():
    sample = random_sample()
    x, target = objectives.noise_to_data(sample)
    sigma = sample.sigma[:, None, None]
    torch.testing.assert_close(x - sigma * target, sample.x_0)
    torch.testing.assert_close(x + (1 - sigma) * target, sample.noise)


def test_learning_rates():
    assert [objectives.cosine(done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert objectives.constant(0.7) == 1
