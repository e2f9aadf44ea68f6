"""DMD2: its losses against autograd and by hand, its backward simulation, and the training as a whole."""

from dataclasses import replace

import pytest
import torch

from pipeline import adapters
from pipeline.backbones.base import repeat
from pipeline.training import batches, loop, rivals
from pipeline.training.costs import CRITIC_STEPS
from pipeline.training.loop import Checkpoint
from pipeline.training.trainers import distribution
from pipeline.training.trainers.distribution import CRITIC_RATE, DistributionTrainer
from tests.recorded import record_tiny


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_tiny(tmp_path_factory.mktemp("recorded"))


def make_job(recorded, **changes):
    (job,) = rivals.dmd2(recorded.params, recorded.loaded())
    return replace(job, settings=replace(job.settings, **({"train_steps": 3} | changes)))


def run(recorded, job, checkpoint=None, stop=None):
    """Trains on a fresh backbone; after `stop` records the run ends as if it were killed."""
    backbone, history = recorded.backbone(), []
    for record in loop.train(backbone, recorded.loaded().trajectories, job, checkpoint):
        history.append(record)
        if len(history) == stop:
            return history, None
    return history, {name: adapters.state(backbone.transformer, name) for name in ("dmd2", "dmd2_critic")}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_by_the_images_is_g_over_the_number_of_elements():
    x_0, fake, real = (random(3, 4, 2, seed=seed) for seed in range(3))
    x_0.requires_grad_()
    distribution.matching_loss(x_0, fake, real).mean().backward()
    scale = (x_0.detach() - real).abs().mean((1, 2), keepdim=True) + 1e-6
    torch.testing.assert_close(x_0.grad, (fake - real) / scale / x_0.numel())


def test_the_matching_loss_of_two_elements_by_hand():
    """mean |x_0 - D_T| = (1 + 3) / 2 = 2, g = (4, -2) / 2 = (2, -1): loss (4 + 1) / 2 / 2, gradient g / 2."""
    x_0 = torch.tensor([[[1.0, 5.0]]], requires_grad=True)
    real = torch.tensor([[[0.0, 2.0]]])
    loss = distribution.matching_loss(x_0, real + torch.tensor([[[4.0, -2.0]]]), real)
    loss.mean().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([1.25]))
    torch.testing.assert_close(x_0.grad, torch.tensor([[[1.0, -0.5]]]))


def test_equal_estimates_leave_the_generator_as_it_is():
    x_0, real = random(2, 4, 2).requires_grad_(), random(2, 4, 2, seed=1)
    distribution.matching_loss(x_0, real, real).mean().backward()
    assert torch.equal(x_0.grad, torch.zeros(2, 4, 2))


def test_the_critics_loss_is_zero_at_the_velocity_from_its_images_to_the_noise():
    x_0, noise, t = random(3, 4, 2), random(3, 4, 2, seed=1), torch.tensor([0.0, 0.3, 1.0])
    asked = []

    def right(y, t):
        asked.append((y, t))
        return noise - x_0

    torch.testing.assert_close(distribution.critic_loss(right, x_0, noise, t), torch.zeros(3))
    ((y, level),) = asked
    torch.testing.assert_close(y, (1 - t[:, None, None]) * x_0 + t[:, None, None] * noise)
    assert torch.equal(level, t)
    off = distribution.critic_loss(lambda y, t: noise - x_0 + t[:, None, None], x_0, noise, t)
    torch.testing.assert_close(off, t**2)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_backward_simulation_runs_the_generators_own_sampler(steps):
    """From fresh noise over the levels s_0 .. s_k, with a gradient in the last call alone."""
    levels, drawn, called = [1.0, 0.7, 0.4, 0.0], [random(2, 3, 2, seed=seed) for seed in range(4)], []
    weight, fresh = torch.tensor(0.5, requires_grad=True), iter(drawn)

    def generator(x, sigma):
        called.append((x, sigma, torch.is_grad_enabled()))
        return weight * x

    x_0 = distribution.generated(generator, lambda: next(fresh), levels, steps)
    assert [sigma.tolist() for _, sigma, _ in called] == [[pytest.approx(level)] * 2 for level in levels[: steps + 1]]
    assert [grad for *_, grad in called] == [False] * steps + [True]
    x = drawn[0]
    for number in range(steps):
        clean = x - levels[number] * 0.5 * x
        x = (1 - levels[number + 1]) * clean + levels[number + 1] * drawn[number + 1]
    torch.testing.assert_close(called[-1][0], x)
    torch.testing.assert_close(x_0.detach(), x - levels[steps] * 0.5 * x)
    x_0.sum().backward()
    torch.testing.assert_close(weight.grad, -levels[steps] * x.sum())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_run_again_gives_the_same_bits_of_generator_and_critic(recorded, tmp_path, precision):
    job = make_job(recorded, precision=precision, learning_rate=1e-3)
    history, states = run(recorded, job)
    for name, state in states.items():
        assert all(tensor.any() for key, tensor in state.items() if ".lora_B." in key), name
    for stop in (1, 2):
        folder = tmp_path / str(stop)
        folder.mkdir()
        run(recorded, job, Checkpoint(folder, every=1), stop)
        again, resumed = run(recorded, job, Checkpoint(folder, every=1))
        assert again == history
        assert all(torch.equal(resumed[name][key], states[name][key]) for name in states for key in states[name])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_generator_step_descends_the_formulas_gradient(recorded, monkeypatch, checkpointing):
    """With a critic that stands still, hence the base; whether weights are merged or not."""
    job = make_job(recorded, precision="fp32", train_steps=1)
    monkeypatch.setattr(distribution, "CRITIC_STEPS", 0)
    backbone, trajectories = recorded.backbone(), recorded.loaded().trajectories
    if checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    trainer = DistributionTrainer(backbone, trajectories, job, None)
    loss = trainer.step(0).loss
    gradients = [parameter.grad for parameter in adapters.parameters(backbone.transformer, "dmd2")]
    assert all(parameter.grad is None for parameter in adapters.parameters(backbone.transformer, "dmd2_critic"))

    bare = recorded.backbone()
    adapters.add(bare, "dmd2", job.settings.rank, job.settings.alpha, job.settings.targets, job.settings.seed)
    ids = batches.items(len(trajectories), job.settings.batch, job.settings.seed, 0)
    conditioning, negative = trajectories.conditioning(ids), repeat(trajectories.negative(), len(ids))
    draws = batches.generator(job.settings.seed, "dmd2", 0)
    levels = [trajectories.sigmas[step].item() for step in job.path]
    steps = int(torch.randint(4, (), generator=draws))
    x = torch.randn(len(ids), 16, 32, generator=draws)
    sigma, sigmas = levels[0], torch.full((len(ids),), levels[0])
    for sigma_next in levels[1 : steps + 1]:
        with torch.no_grad():
            x_0 = x - sigma * bare.velocity(x, sigmas, conditioning, 3.5)
        x = (1 - sigma_next) * x_0 + sigma_next * torch.randn(x.shape, generator=draws)
        sigma, sigmas = sigma_next, torch.full((len(ids),), sigma_next)
    x_0 = x - sigma * bare.velocity(x, sigmas, conditioning, 3.5)
    t = 0.02 + 0.96 * torch.rand(len(ids), generator=draws)
    level = t[:, None, None]
    with torch.no_grad():
        y = (1 - level) * x_0 + level * torch.randn(x.shape, generator=draws)
        cond, uncond = bare.velocity(y, t, conditioning, 3.5), bare.velocity(y, t, negative, 3.5)
        real = y - level * (uncond + trajectories.recording.true_cfg_scale * (cond - uncond))
        g = ((y - level * cond) - real) / ((x_0 - real).abs().mean((1, 2), keepdim=True) + 1e-6)
    assert loss == pytest.approx(0.5 * g.square().mean().item(), rel=1e-4)
    x_0.backward(g / g.numel())
    expected = [parameter.grad for parameter in adapters.parameters(bare.transformer, "dmd2")]
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_critic_learns_five_times_as_often_and_five_times_as_fast(recorded):
    trainer = DistributionTrainer(recorded.backbone(), recorded.loaded().trajectories, make_job(recorded), None)
    record = trainer.step(0)
    steps = {
        name: {int(state["step"]) for state in optimizer.state.values()}
        for name, optimizer in trainer.optimizers.items()
    }
    assert steps == {"generator": {1}, "critic": {CRITIC_STEPS}}
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer.optimizers.items()}
    assert rates == {"generator": record.learning_rate, "critic": CRITIC_RATE * record.learning_rate}
    pair = recorded.params.train_slow.learning_rate
    assert record.learning_rate == pytest.approx(pair / 10)


def test_matching_moves_a_generator_of_normal_images_to_the_teachers_mean():
    """Both estimates are known there: E[x_0 | y] for x_0 ~ N(mean, s^2) and y = (1 - t) x_0 + t noise."""

    def estimate(y, t, mean, s):
        gain = (1 - t) * s**2 / ((1 - t) ** 2 * s**2 + t**2)
        return mean + gain * (y - (1 - t) * mean)

    mean, draws = torch.tensor(-1.0, requires_grad=True), torch.Generator().manual_seed(0)
    for _ in range(300):
        x_0 = mean + 0.5 * torch.randn(64, 1, 1, generator=draws)
        t = 0.02 + 0.96 * torch.rand(64, 1, 1, generator=draws)
        y = (1 - t) * x_0.detach() + t * torch.randn(64, 1, 1, generator=draws)
        fake, real = estimate(y, t, mean.detach(), 0.5), estimate(y, t, 2.0, 0.5)
        (gradient,) = torch.autograd.grad(distribution.matching_loss(x_0, fake, real).mean(), mean)
        with torch.no_grad():
            mean -= 0.05 * gradient
    assert mean.item() == pytest.approx(2.0, abs=0.1)


def test_only_the_generator_is_kept(recorded, tmp_path):
    job, backbone = make_job(recorded, train_steps=1), recorded.backbone()
    base = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    loop.train_to(tmp_path / "dmd2", backbone, recorded.loaded().trajectories, job)
    assert [folder.name for folder in tmp_path.iterdir()] == ["dmd2"]
    after = backbone.transformer.state_dict()
    assert after.keys() == base.keys() and all(torch.equal(after[name], base[name]) for name in base)


@pytest.mark.parametrize("name", ["critic_loss", "matching_loss"])
def test_a_loss_that_is_not_finite_stops_the_training(recorded, monkeypatch, name):
    loss = getattr(distribution, name)
    monkeypatch.setattr(distribution, name, lambda *args: loss(*args) * float("nan"))
    with pytest.raises(ValueError, match=r"the loss must be finite, got nan at train step 0 of phase dmd2, sigma 0\."):
        run(recorded, make_job(recorded))
