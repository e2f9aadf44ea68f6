import pytest
import torch

from pipeline.flow.guidance import forwards, true_cfg, true_cfg_norm_rescaled

X, SIGMA = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.9])


def cond(x, sigma):
    return 2 * x + sigma[:, None, None]


def uncond(x, sigma):
    return 1 - x


@pytest.mark.parametrize("guide", [true_cfg, true_cfg_norm_rescaled])
def test_guidance_of_scale_1_is_the_conditional_velocity_itself(guide):
    assert guide(cond, uncond, 1.0) is cond


def test_true_cfg_is_linear_in_the_scale():
    v, v_uncond = cond(X, SIGMA), uncond(X, SIGMA)
    torch.testing.assert_close(true_cfg(cond, uncond, 3.0)(X, SIGMA), 3 * v - 2 * v_uncond)


@pytest.mark.parametrize("guide", [true_cfg, true_cfg_norm_rescaled])
def test_equal_velocities_need_no_guidance(guide):
    torch.testing.assert_close(guide(cond, cond, 5.0)(X, SIGMA), cond(X, SIGMA))


def test_norm_rescaled_keeps_the_direction_of_true_cfg_and_the_norm_of_cond():
    rescaled, plain = true_cfg_norm_rescaled(cond, uncond, 4.0)(X, SIGMA), true_cfg(cond, uncond, 4.0)(X, SIGMA)
    torch.testing.assert_close(rescaled.norm(dim=-1), cond(X, SIGMA).norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(rescaled, plain, dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_forwards_counts_the_calls_of_a_step(scale):
    calls = []

    def counted(x, sigma):
        calls.append(sigma)
        return x

    true_cfg(counted, counted, scale)(X, SIGMA)
    assert len(calls) == forwards(scale)
