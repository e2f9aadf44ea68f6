import pytest
import torch

from pipeline.flow.guidance import (
    ASKED,
    OFF,
    REUSED,
    SteeredGuidance,
    evaluations,
    forwards,
    true_cfg,
    true_cfg_norm_rescaled,
)

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


@pytest.mark.parametrize("guide", [true_cfg, true_cfg_norm_rescaled])
def test_guidance_can_be_asked_for_turned_off_and_reused(guide):
    """Reused guidance is what the last step that asked added to the conditional velocity."""
    steered, later = SteeredGuidance(cond, lambda cond: guide(cond, uncond, 3.0)), X + 1
    asked = guide(cond, uncond, 3.0)(X, SIGMA)
    torch.testing.assert_close(steered(X, SIGMA), asked)
    steered.mode = OFF
    torch.testing.assert_close(steered(later, SIGMA), cond(later, SIGMA))
    steered.mode = REUSED
    torch.testing.assert_close(steered(later, SIGMA), cond(later, SIGMA) + asked - cond(X, SIGMA))
    steered.mode = ASKED
    torch.testing.assert_close(steered(later, SIGMA), guide(cond, uncond, 3.0)(later, SIGMA))


def test_guidance_that_no_step_asked_for_cannot_be_reused():
    steered = SteeredGuidance(cond, lambda cond: true_cfg(cond, uncond, 3.0))
    steered.mode = OFF
    steered(X, SIGMA)
    steered.mode = REUSED
    with pytest.raises(ValueError, match="can reuse guidance only after a step that asked for it"):
        steered(X, SIGMA)


@pytest.mark.parametrize("modes", [(ASKED, OFF, REUSED), (ASKED, ASKED, OFF)])
def test_evaluations_counts_the_calls_of_a_run(modes):
    calls = []

    def counted(x, sigma):
        calls.append(sigma)
        return x

    steered = SteeredGuidance(counted, lambda cond: true_cfg(cond, counted, 3.0))
    for mode in modes:
        steered.mode = mode
        steered(X, SIGMA)
    assert len(calls) == evaluations(modes, len(modes), 3.0) == len(modes) + modes.count(ASKED)
    assert (evaluations(None, 5, 3.0), evaluations(None, 5, 1.0), evaluations(modes, 3, 1.0)) == (10, 5, 3)
