"""PDD from the recording: its loss, the output layers that it trains, and the adapters that it exports."""

from dataclasses import replace

import pytest
import torch

from pipeline import adapters, artifacts, backbones
from pipeline.adapters import switching
from pipeline.evaluation import inputs
from pipeline.evaluation.samples import Shard
from pipeline.flow.solvers import secants
from pipeline.training import loop, rivals
from pipeline.training.loop import Checkpoint
from pipeline.training.trainers import heads
from pipeline.training.trainers.heads import Head, HeadsTrainer
from tests.evaluation_case import make_artifacts, small_params
from tests.recorded import record_tiny
from tests.tiny import make_tiny_qwen_image, make_tiny_z_image


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_tiny(tmp_path_factory.mktemp("recorded"))


def make_job(recorded, **changes):
    (job,) = rivals.pdd(recorded.params, recorded.loaded())
    return replace(job, settings=replace(job.settings, **({"train_steps": 8, "precision": "fp32"} | changes)))


def run(recorded, job, checkpoint=None, stop=None):
    """Trains on a fresh backbone; after `stop` records the run ends as if it were killed."""
    records, history = loop.train(recorded.backbone(), recorded.loaded().trajectories, job, checkpoint), []
    while True:
        try:
            history.append(next(records))
        except StopIteration as end:
            return history, end.value
        if len(history) == stop:
            return history, None


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_zero_at_the_secants_of_the_recorded_steps():
    states, sigmas = random(2, 4, 3, 5), torch.tensor([0.9, 0.7, 0.4, 0.1])
    found = secants(states, sigmas)
    torch.testing.assert_close(heads.decoding_loss(found, states, sigmas), torch.zeros(2))


def test_each_recorded_step_weighs_as_much_as_it_is_long():
    """Steps of 0.2, 0.3 and 0.3 of 0.8, the velocities off by 1, 2 and 3: 0.25 * 1 + 0.375 * 4 + 0.375 * 9."""
    states, sigmas = random(2, 4, 3, 5), torch.tensor([0.9, 0.7, 0.4, 0.1])
    off = secants(states, sigmas) + torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    torch.testing.assert_close(heads.decoding_loss(off, states, sigmas), torch.full((2,), 5.125))
    torch.testing.assert_close(heads.shares(sigmas), torch.tensor([0.25, 0.375, 0.375]))


@pytest.mark.parametrize("rank, own", [(6, 2), (7, 2), (5, 5), (8, 5)])
def test_the_fused_layer_is_exactly_the_weighted_sum(rank, own):
    """Whether the factors of three heads fit into the rank, or the five rows of the layer do."""
    made = [
        Head(*(torch.nn.Parameter(random(*shape, seed=9 * n + i)) for i, shape in enumerate(((own, 4), (5, own)))))
        for n in range(3)
    ]
    weights = torch.tensor([0.5, 0.3, 0.2])
    A, B = heads.fused(made, weights, rank)
    assert A.shape == (rank, 4) and B.shape == (5, rank)
    expected = sum(weight * head.B @ head.A for weight, head in zip(weights, made, strict=True))
    torch.testing.assert_close(B @ A, expected.detach())


def test_the_first_loss_is_the_base_models_error_on_the_recorded_steps(recorded):
    job, trajectories = make_job(recorded, batch=6), recorded.loaded().trajectories
    history, _ = run(recorded, job, stop=len(job.steps))
    ids, expected = list(range(len(trajectories))), []
    for start, end in job.steps:
        states, sigmas = trajectories.states(ids, range(start, end + 1)), trajectories.sigmas[start : end + 1]
        with torch.no_grad():
            levels = torch.full((len(ids),), sigmas[0].item())
            v = recorded.backbone().velocity(states[:, 0], levels, trajectories.conditioning(ids), 3.5)
        errors = [(v - target).square().mean().item() for target in secants(states, sigmas).unbind(1)]
        expected.append(sum(share * error for share, error in zip(heads.shares(sigmas).tolist(), errors, strict=True)))
    assert min(abs(history[0].loss - value) for value in expected) < 1e-4 * history[0].loss


def test_every_student_step_comes_once_before_any_comes_again(recorded, monkeypatch):
    trainer, seen = HeadsTrainer(recorded.backbone(), recorded.loaded().trajectories, make_job(recorded), None), []
    decoding = trainer._decoding
    monkeypatch.setattr(trainer, "_decoding", lambda own: seen.append(own) or decoding(own))
    for train_step in range(8):
        trainer.step(train_step)
    order = [[own is other for other in trainer.heads.values()].index(True) for own in seen]
    assert sorted(order[:4]) == sorted(order[4:]) == [0, 1, 2, 3]


@pytest.mark.parametrize("rank", [4, 40])
@pytest.mark.parametrize("targets", ["all", "attention"])
def test_an_exported_adapter_gives_the_mean_of_its_heads(recorded, rank, targets):
    job, data = make_job(recorded, rank=rank, targets=targets, learning_rate=0.01), recorded.loaded()
    _, trainer = run(recorded, job)
    trajectories, exported = data.trajectories, trainer.trained()
    assert list(exported) == [f"pdd_{number}" for number in range(4)]
    ids = list(range(len(trajectories)))
    conditioning = trajectories.conditioning(ids)
    adapters.select(trainer.backbone.transformer, "pdd")
    states = {
        name: adapters.fold_scale(state, config.lora_alpha, config.r) for name, (state, config) in exported.items()
    }
    bare, different = recorded.backbone(), []
    with switching.acting(bare.transformer, states) as select, torch.no_grad():
        for number, (step, own) in enumerate(trainer.heads.items()):
            x, sigmas = trajectories.states(ids, [step[0]])[:, 0], trajectories.sigmas[step[0] : step[1] + 1]
            levels = torch.full((len(ids),), sigmas[0].item())
            with trainer._decoding(own):
                every = trainer.backbone.velocity(x, levels, conditioning, 3.5).unflatten(-1, (len(own), -1))
            mean = torch.einsum("n,btnc->btc", heads.shares(sigmas).float(), every)
            select(f"pdd_{number}")
            torch.testing.assert_close(bare.velocity(x, levels, conditioning, 3.5), mean, rtol=1e-5, atol=1e-5)
            different.append((every[..., 0, :] - every[..., 1, :]).abs().max().item())
    assert min(different) > 1e-3, "the heads learned different things"


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(recorded, tmp_path):
    job, backbone = make_job(recorded, learning_rate=0.01, train_steps=40), recorded.backbone()
    base = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    losses = [record.loss for record in loop.train_to(tmp_path / "pdd", backbone, recorded.loaded().trajectories, job)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert {folder.name for folder in tmp_path.iterdir()} == {f"pdd_{number}" for number in range(4)}
    after = backbone.transformer.state_dict()
    assert after.keys() == base.keys() and all(torch.equal(after[name], base[name]) for name in base)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_and_run_again_gives_the_same_bits(recorded, tmp_path, precision):
    job = make_job(recorded, precision=precision)
    history, trainer = run(recorded, job)
    for stop in (1, 6):
        folder = tmp_path / str(stop)
        folder.mkdir()
        run(recorded, job, Checkpoint(folder, every=1), stop)
        again, resumed = run(recorded, job, Checkpoint(folder, every=3))
        assert again == history
        for name, (state, _) in trainer.trained().items():
            assert all(torch.equal(resumed.trained()[name][0][key], tensor) for key, tensor in state.items())


def test_gradient_checkpointing_changes_no_loss(recorded):
    losses = []
    for checkpointing in (False, True):
        backbone = recorded.backbone()
        if checkpointing:
            backbone.transformer.enable_gradient_checkpointing()
        records = loop.train(backbone, recorded.loaded().trajectories, make_job(recorded, train_steps=3))
        losses.append([record.loss for record in records])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_what_the_trainer_cannot_do_is_refused(recorded):
    trajectories = recorded.loaded().trajectories
    with pytest.raises(ValueError, match=r"pdd needs student.true_cfg_scale of at most 1, got 3\.0"):
        HeadsTrainer(recorded.backbone(), trajectories, replace(make_job(recorded), true_cfg_scale=3.0), None)
    with pytest.raises(ValueError, match="training.rank must be at least 2 for the trainer pdd, .* got 1"):
        HeadsTrainer(recorded.backbone(), trajectories, make_job(recorded, rank=1), None)
    with pytest.raises(ValueError, match="training.targets must be one of attention, all for flux, got 'magic'"):
        HeadsTrainer(recorded.backbone(), trajectories, make_job(recorded, targets="magic"), None)


class Encoded:
    """One prompt of any family, as the trainer reads a recording."""

    def __init__(self, recorded, backbone):
        self.recording = recorded.loaded().trajectories.recording
        self._rows = backbone.encode(["a red star"], self.recording.max_sequence_length)
        self._x = random(1, 1, *backbone.latent_shape(64, 64))

    def states(self, ids, steps):
        return self._x

    def conditioning(self, ids):
        return self._rows


def test_the_output_layer_is_found_in_any_family_or_refused(recorded, tmp_path):
    assert heads.output_layer(recorded.backbone(), recorded.loaded().trajectories) == "proj_out"
    parts = ("text", "transformer")
    backbone = backbones.load(make_tiny_qwen_image(tmp_path / "qwen"), "cpu", parts)
    assert heads.output_layer(backbone, Encoded(recorded, backbone)) == "proj_out"
    backbone = backbones.load(make_tiny_z_image(tmp_path / "z"), "cpu", parts)
    with pytest.raises(
        ValueError, match=r"the output of its last linear layer, got z_image, whose last .* all_final_lay"
    ):
        heads.output_layer(backbone, Encoded(recorded, backbone))


def test_the_arm_makes_images_with_an_adapter_per_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = small_params()
    settings = replace(settings, train_controls=replace(settings.train_controls, arms=("pdd",)))
    make_artifacts(settings)
    found = inputs.read(settings, inputs.of_stages(settings))
    assert {*found.adapter_digests} == {"slow", "fast", *(f"pdd_{number}" for number in range(4))}
    assert all((artifacts.TRAIN_CONTROLS / f"pdd_{number}").is_dir() for number in range(4))
    arms = {arm.name: arm for arm in found.arms}
    assert arms["pdd"].plan.adapters == ("pdd_0", "pdd_1", "pdd_2", "pdd_3") and arms["pdd"].nfe == 4
    shard = Shard(prompts=found.prompts[:2], seeds=[1, 2])
    images = {name: found.sampler.images(arms[name], shard) for name in ("pdd", "student")}
    assert images["pdd"].shape == (2, 64, 64, 3) and (images["pdd"] != images["student"]).any()
