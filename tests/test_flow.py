import math

import pytest
import torch

from pipeline import flow
from pipeline.flow.schedule import shift


@pytest.fixture
def path():
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    return x_0, noise, sigma, flow.interpolate(x_0, noise, sigma), flow.velocity(x_0, noise)


def test_interpolate_ends_at_data_and_noise(path):
    x_0, noise, *_ = path
    assert torch.equal(flow.interpolate(x_0, noise, 0.0), x_0)
    assert torch.equal(flow.interpolate(x_0, noise, 1.0), noise)


def test_sigma_belongs_to_its_own_row(path):
    x_0, noise, sigma, x, _ = path
    for row in range(3):
        torch.testing.assert_close(x[row], flow.interpolate(x_0[row], noise[row], sigma[row]))


def test_data_noise_and_velocity_convert_into_each_other(path):
    x_0, noise, sigma, x, v = path
    torch.testing.assert_close(flow.x_0_from_velocity(x, v, sigma), x_0)
    torch.testing.assert_close(flow.noise_from_velocity(x, v, sigma), noise)
    torch.testing.assert_close(flow.velocity_from_x_0(x, x_0, sigma), v)
    torch.testing.assert_close(flow.velocity_from_noise(x, noise, sigma), v)


def test_velocity_is_the_derivative_of_the_path(path):
    x_0, noise, sigma, x, v = path
    later = flow.interpolate(x_0, noise, sigma + 1e-4)
    torch.testing.assert_close((later - x) / 1e-4, v, rtol=1e-6, atol=1e-8)


def test_secant_leads_from_one_state_to_the_next():
    x, x_next = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    sigma, sigma_next = torch.tensor([[0.9, 0.8, 0.5], [0.5, 0.1, 0.0]], dtype=torch.float64)
    v = flow.secant(x, x_next, sigma, sigma_next)
    torch.testing.assert_close(x + (sigma_next - sigma)[:, None, None] * v, x_next)


def test_secant_is_the_velocity_on_a_straight_path(path):
    x_0, noise, sigma, x, v = path
    torch.testing.assert_close(flow.secant(x, x_0, sigma, 0.0), v)


def test_conversions_keep_the_dtype_of_the_latents():
    x = torch.randn(2, 4)
    assert flow.x_0_from_velocity(x, x, torch.tensor([0.5, 0.1], dtype=torch.float64)).dtype == torch.float32


def test_snr_falls_with_sigma_and_is_1_in_the_middle():
    sigma = torch.linspace(0.01, 1, 100)
    assert (flow.snr(sigma).diff() < 0).all()
    assert flow.snr(0.5) == 1 and flow.snr(1.0) == 0 and flow.snr(0.0) == math.inf
    assert flow.snr(0.8) == pytest.approx(0.0625)


def test_a_shift_divides_the_snr_by_the_square_of_its_factor():
    u = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(flow.snr(shift(u, 1.15)), math.exp(-2.3) * flow.snr(u))
