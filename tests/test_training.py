import csv
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from pipeline import adapters, backbones
from pipeline.adapters import switching
from pipeline.backbones import precision as arithmetic
from pipeline.backbones.base import concat, index, repeat
from pipeline.backbones.teacher import Teacher
from pipeline.objectives import OBJECTIVES, Objective, regression
from pipeline.objectives.base import constant, cosine, error
from pipeline.recording.trajectories import Trajectories
from pipeline.training import batches, jobs, loop, velocities
from pipeline.training.loop import Checkpoint
from pipeline.training.trainers.base import TrainStep
from tests.recorded import record_tiny

pytestmark = pytest.mark.usefixtures("computes_bfloat16")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_tiny(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def trajectories(recorded):
    return Trajectories(recorded.trajectories)


def make_job(recorded, phase="slow", true_cfg_scale=1.0, **changes):
    settings = jobs.TrainingSettings.of(recorded.params.training, recorded.params.train_slow)
    return jobs.Job(
        name=phase,
        steps=getattr(recorded.partition, phase).pairs,
        settings=replace(settings, **changes),
        guidance_scale=3.5,
        true_cfg_scale=true_cfg_scale,
    )


def run(recorded, trajectories, job, checkpoint=None, stop=None):
    """Trains on a fresh backbone; after `stop` records the run ends as if it were killed."""
    backbone = recorded.backbone()
    history = []
    for record in loop.train(backbone, trajectories, job, checkpoint):
        history.append(record)
        if len(history) == stop:
            return history, None
    return history, adapters.state(backbone.transformer, job.name)


@pytest.mark.parametrize("count, batch", [(12, 4), (5, 3), (2, 7)])
def test_every_item_comes_once_before_any_comes_again(count, batch):
    drawn = torch.cat([batches.items(count, batch, seed=3, train_step=i) for i in range(3 * count)])
    epochs = drawn[: len(drawn) // count * count].view(-1, count)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(count).expand_as(epochs))
    assert torch.unique(epochs, dim=0).shape[0] > 1
    assert not torch.equal(drawn, torch.cat([batches.items(count, batch, 4, i) for i in range(3 * count)]))


@pytest.mark.parametrize("true_cfg_scale", [1.0, 3.0])
@pytest.mark.parametrize("phase", ["slow", "fast"])
def test_the_first_loss_is_the_base_models_error_on_the_teachers_path(recorded, trajectories, phase, true_cfg_scale):
    """One batch of all pairs of trajectory and step: the mean over them, whatever their order."""
    steps = getattr(recorded.partition, phase).pairs
    job = make_job(recorded, phase, true_cfg_scale, batch=len(steps) * len(trajectories), precision="fp32")
    backbone = recorded.backbone()
    ids = list(range(len(trajectories)))
    errors = []
    for start, end in steps:
        x, x_next = trajectories.states(ids, [start, end]).unbind(1)
        sigma, sigma_next = trajectories.sigmas[start].item(), trajectories.sigmas[end].item()
        levels = torch.full((len(ids),), sigma)
        with torch.no_grad():
            v = backbone.velocity(x, levels, trajectories.conditioning(ids), 3.5)
            if true_cfg_scale != 1:
                negative = repeat(trajectories.negative(), len(ids))
                v_uncond = backbone.velocity(x, levels, negative, 3.5)
                v = v_uncond + true_cfg_scale * (v - v_uncond)
        errors.append(((v - (x_next - x) / (sigma_next - sigma)) ** 2).mean().item())
    history, _ = run(recorded, trajectories, job, stop=1)
    assert history[0].loss == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_lowers_the_loss(recorded, trajectories, objective):
    job = make_job(recorded, objective=objective, train_steps=60, learning_rate=0.01)
    history, _ = run(recorded, trajectories, job)
    losses = [record.loss for record in history]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert history[0].learning_rate == 0.01
    assert (history[-1].learning_rate < 0.001) == (OBJECTIVES[objective].rate is cosine)


@pytest.mark.parametrize("precision, stops", [("fp32", [1, 3, 5, 8]), ("bf16", [4])])
def test_killed_after_a_train_step_and_run_again_gives_the_same_bits(
    recorded, trajectories, tmp_path, precision, stops
):
    job = make_job(recorded, precision=precision)
    history, state = run(recorded, trajectories, job)
    for stop in stops:
        folder = tmp_path / str(stop)
        folder.mkdir()
        run(recorded, trajectories, job, Checkpoint(folder, every=3), stop)
        again, resumed = run(recorded, trajectories, job, Checkpoint(folder, every=2))
        assert again == history
        assert all(torch.equal(resumed[key], state[key]) for key in state)


def test_a_resumed_run_does_not_repeat_what_its_checkpoint_has(recorded, trajectories, tmp_path, monkeypatch):
    job = make_job(recorded)
    run(recorded, trajectories, job, Checkpoint(tmp_path, every=3), stop=7)
    steps = []
    draw = batches.draw
    monkeypatch.setattr(batches, "draw", lambda *args: steps.append(args[3]) or draw(*args))
    run(recorded, trajectories, job, Checkpoint(tmp_path, every=3))
    assert steps == [6, 7]


def test_another_job_input_or_code_has_another_key(recorded, tmp_path, monkeypatch):
    job = make_job(recorded)
    keys = {loop.checkpoint_key(job, recorded.trajectories)}
    changed = [
        make_job(recorded, seed=99),
        make_job(recorded, "fast"),
        make_job(recorded, true_cfg_scale=2.0),
        replace(job, trajectories=1),
        replace(job, name="other"),
    ]
    keys |= {loop.checkpoint_key(other, recorded.trajectories) for other in changed}
    (tmp_path / "index.json").write_text("{}")
    keys.add(loop.checkpoint_key(job, tmp_path))
    monkeypatch.setattr(loop, "code_digest", lambda: "other code")
    keys.add(loop.checkpoint_key(job, recorded.trajectories))
    assert len(keys) == 3 + len(changed)


def test_one_trajectory_is_one_trajectory(recorded, trajectories, monkeypatch):
    seen = set()
    conditioning = trajectories.conditioning
    monkeypatch.setattr(trajectories, "conditioning", lambda ids: seen.update(ids.tolist()) or conditioning(ids))
    run(recorded, trajectories, replace(make_job(recorded), trajectories=1))
    assert seen == {0}


def test_a_loss_that_is_not_finite_names_step_phase_and_sigma(recorded, trajectories, tmp_path):
    backbone = recorded.backbone()
    run_ = loop.train(backbone, trajectories, make_job(recorded, "fast"), Checkpoint(tmp_path, every=3))
    for _ in range(4):
        next(run_)
    with torch.no_grad():
        backbone.transformer.proj_out.base_layer.bias.fill_(math.nan)
    levels = "|".join(f"{sigma:.4f}" for sigma in recorded.partition.fast.sigmas[:-1])
    with pytest.raises(ValueError, match=rf"must be finite, got nan at train step 4 of phase fast, sigma ({levels});"):
        next(run_)
    kept = torch.load(tmp_path / loop.CHECKPOINT, weights_only=True)
    assert len(kept["history"]) == 3
    assert all(tensor.isfinite().all() for tensor in kept["parameters"])


def test_an_unknown_objective_is_refused(recorded, trajectories):
    with pytest.raises(ValueError, match=f"training.objective must be one of {', '.join(OBJECTIVES)}, got 'magic'"):
        run(recorded, trajectories, make_job(recorded, objective="magic"))


def test_bfloat16_keeps_the_timestep_and_comes_close(recorded, trajectories):
    seen = []
    backbone = recorded.backbone()
    backbone.transformer.time_text_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = [
        next(loop.train(backbone, trajectories, make_job(recorded, precision="bf16"))).loss,
        run(recorded, trajectories, make_job(recorded, precision="fp32"), stop=1)[0][0].loss,
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]
    levels = 1000 * torch.tensor(recorded.partition.slow.sigmas[:-1])
    assert (seen[0][:, None] - levels).abs().min(dim=1).values.max() < 1e-3


def test_a_cpu_without_bfloat16_trains_in_float32(recorded, trajectories, monkeypatch):
    monkeypatch.setattr(arithmetic, "emulates_bfloat16", lambda: True)
    jobs_ = (make_job(recorded, precision=precision) for precision in ("bf16", "fp32"))
    losses = [run(recorded, trajectories, job, stop=2)[0][1].loss for job in jobs_]
    assert losses[0] == losses[1]


def test_a_transformer_in_16_bits_trains_an_adapter_in_32(recorded, trajectories):
    backbone = backbones.load(Teacher(path=recorded.teacher, dtype="bf16"), "cpu", ("transformer",))
    base = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    job = make_job(recorded, train_steps=30, learning_rate=0.01)
    losses = [record.loss for record in loop.train(backbone, trajectories, job)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert {tensor.dtype for tensor in adapters.state(backbone.transformer, "slow").values()} == {torch.float32}
    backbone.transformer.unload_lora()
    assert all(torch.equal(value, base[name]) for name, value in backbone.transformer.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_checkpointing_changes_no_loss(recorded, trajectories, precision):
    job, losses = make_job(recorded, precision=precision, train_steps=3), []
    for checkpointing in (False, True):
        backbone = recorded.backbone()
        if checkpointing:
            backbone.transformer.enable_gradient_checkpointing()
        losses.append([record.loss for record in loop.train(backbone, trajectories, job)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 1e-2)  # merged weights or not


def test_training_leaves_the_base_as_it_was(recorded, trajectories, tmp_path):
    backbone = recorded.backbone()
    base = {name: value.clone() for name, value in backbone.transformer.state_dict().items()}
    loop.train_to(tmp_path, backbone, trajectories, make_job(recorded))
    after = backbone.transformer.state_dict()
    assert after.keys() == base.keys()
    assert all(torch.equal(after[name], base[name]) for name in base)


def test_the_trained_adapter_lowers_the_error_of_the_sampled_velocity(recorded, trajectories, tmp_path):
    """What was trained with merged weights in bfloat16 helps the float32 student that is sampled."""
    backbone = recorded.backbone()
    job = make_job(recorded, train_steps=40, learning_rate=0.01)
    loop.train_to(tmp_path, backbone, trajectories, job)
    state, _ = adapters.read(tmp_path)
    ids = list(range(len(trajectories)))
    x, x_next = trajectories.states(ids, list(job.steps[0])).unbind(1)
    sigma, sigma_next = (trajectories.sigmas[step].item() for step in job.steps[0])
    errors = {}
    with switching.acting(backbone.transformer, {"slow": state}) as select, torch.no_grad():
        for name in (None, "slow"):
            select(name)
            conditioning = index(trajectories.conditioning(ids), ids)
            v = backbone.velocity(x, torch.full((len(ids),), sigma), conditioning, 3.5)
            errors[name] = ((v - (x_next - x) / (sigma_next - sigma)) ** 2).mean().item()
    assert errors["slow"] < 0.9 * errors[None]


def written_out(recorded, job, precision, steps):
    """A training as it was before objectives had a loss of their own: one target, one forward, one mean over all rows.

    Returns:
        The losses, then the adapter's parameters.
    """
    data, backbone, settings = recorded.loaded(), recorded.backbone(), job.settings
    trajectories, anchors, flow = data.trajectories, data.anchors, settings.objective == "flow"
    adapters.add(backbone, job.name, settings.rank, settings.alpha, settings.targets, settings.seed)
    parameters = adapters.parameters(backbone.transformer, job.name)
    optimizer, losses = torch.optim.AdamW(parameters, fused=True), []
    for train_step in range(steps):
        order = settings.seed, train_step
        chosen = batches.items(len(trajectories) * len(job.steps), settings.batch, *order)
        ids, pairs = chosen % len(trajectories), torch.tensor(job.steps)[chosen // len(trajectories)]
        x, x_next = trajectories.states(ids, pairs).float().unbind(1)
        sigma, sigma_next = trajectories.sigmas[pairs].float().unbind(1)
        conditioning = trajectories.conditioning(ids)
        if flow:
            noise = torch.randn(x.shape, generator=batches.generator(settings.seed, "noise", train_step))
            x_0 = trajectories.states(ids, [trajectories.steps]).float()[:, 0]
            levels = sigma.reshape(-1, 1, 1)
            x, target = (1 - levels) * x_0 + levels * noise, noise - x_0
        else:
            target = (x_next - x) / (sigma_next.reshape(-1, 1, 1) - sigma.reshape(-1, 1, 1))
            chosen = batches.items(len(anchors) * len(job.anchored), settings.anchor_batch, *order, "anchors")
            ids, pairs = chosen % len(anchors), torch.tensor(job.anchored)[chosen // len(anchors)]
            y, y_next = anchors.states(ids, pairs).float().unbind(1)
            tau, tau_next = anchors.sigmas[pairs].float().unbind(1)
            theirs = (y_next - y) / (tau_next.reshape(-1, 1, 1) - tau.reshape(-1, 1, 1))
            x, target, sigma = torch.cat([x, y]), torch.cat([target, theirs]), torch.cat([sigma, tau])
            conditioning = concat(conditioning, anchors.conditioning(ids))
        rate = 1.0 if flow else (1 + math.cos(math.pi * train_step / settings.train_steps)) / 2
        optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
        adapters.select(backbone.transformer, None)
        for parameter in parameters:
            parameter.requires_grad_(True)
        model = velocities._Model(backbone)
        weights = {f"transformer.{k}": v for k, v in adapters.merged_weights(model.transformer, job.name).items()}
        with arithmetic.attention(backbone, precision):
            with arithmetic.computing(backbone, precision):
                v = torch.func.functional_call(model, weights, (x, sigma, conditioning, 3.5, None))
                if not flow:
                    negative = repeat(trajectories.negative(), len(x))
                    v_uncond = torch.func.functional_call(model, weights, (x, sigma, negative, 3.5, None))
                    v = v_uncond + job.true_cfg_scale * (v - v_uncond)
                loss = (v.float() - target).square().flatten(1).mean(1).mean()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("objective", ["trajectory", "flow"])
def test_losses_and_adapters_are_bitwise_those_of_the_formulas(recorded, objective, precision):
    """Over rows of trajectories and of anchors, guided: not even the order of the sums may change."""
    job = jobs.of_phase(recorded.params, recorded.loaded(), "slow")
    settings = replace(job.settings, objective=objective, precision=precision, learning_rate=0.01)
    job, steps = replace(job, settings=settings, true_cfg_scale=3.0), 3
    losses, parameters = written_out(recorded, job, precision, steps)
    data, backbone = recorded.loaded(), recorded.backbone()
    records = loop.train(backbone, data.trajectories, job, anchors=data.anchors)
    assert [next(records).loss for _ in range(steps)] == losses
    trained = adapters.parameters(backbone.transformer, job.name)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(trained, parameters, strict=True))


@pytest.mark.parametrize("phase", ["slow", "fast"])
def test_the_targets_of_an_ab2_student_are_those_of_its_steps_before(recorded, phase):
    """v_0 = s_0, then v_i = (s_i + b_i v_(i-1)) / (1 + b_i), b_i = h_i / (2 h_(i-1)), also across the handoff."""
    params, data = recorded.params, recorded.loaded()
    job = jobs.of_phase(replace(params, student=replace(params.student, solver="ab2")), data, phase)
    path = [pair[0] for one in ("slow", "fast") for pair in data.steps(one)[0]] + [data.trajectories.steps]
    ids = list(range(len(data.trajectories)))
    states, sigmas = data.trajectories.states(ids, path), data.trajectories.sigmas[path].tolist()
    expected, h = [], [after - start for start, after in pairwise(sigmas)]
    for i in range(len(path) - 1):
        secant = (states[:, i + 1] - states[:, i]) / h[i]
        b = h[i] / (2 * h[i - 1]) if i else 0.0
        expected.append((secant + b * expected[-1]) / (1 + b) if i else secant)
    batch = batches.draw(data.trajectories, job, regression.TRAJECTORY, 0)
    chosen = batches.items(len(ids) * len(job.steps), job.settings.batch, job.settings.seed, 0)
    for row, item in enumerate(chosen.tolist()):
        trajectory, step = item % len(ids), path.index(job.steps[item // len(ids)][0])
        torch.testing.assert_close(batch.sample.target[row], expected[step][trajectory], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_objective_may_ask_the_teacher(recorded, trajectories, monkeypatch, checkpointing):
    """It is the guided base at every train step, whether the student's weights are merged or not."""
    answers = []

    def loss(sample, student, teacher):
        v = student(sample.x, sample.sigma)
        answers.append((sample, teacher(sample.x, sample.sigma)))  # between the student's forward and its backward
        return error(v, answers[-1][1])

    monkeypatch.setitem(OBJECTIVES, "imitation", Objective(loss=loss, rate=constant, guided=True))
    backbone = recorded.backbone()
    if checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    job = make_job(recorded, objective="imitation", precision="fp32", train_steps=12, learning_rate=0.01)
    losses = [record.loss for record in loop.train(backbone, trajectories, job)]
    assert losses[-1] < 0.8 * losses[0]

    bare, scale = recorded.backbone(), trajectories.recording.true_cfg_scale
    for train_step in (0, 11):
        sample, answer = answers[train_step]
        conditioning = batches.draw(trajectories, job, regression.TRAJECTORY, train_step).conditioning
        with torch.no_grad():
            v = bare.velocity(sample.x, sample.sigma, conditioning, 3.5)
            v_uncond = bare.velocity(sample.x, sample.sigma, repeat(trajectories.negative(), len(sample.x)), 3.5)
        torch.testing.assert_close(answer, v_uncond + scale * (v - v_uncond))
        assert not answer.requires_grad
        if train_step == 0:  # the student is the base still
            assert losses[0] == pytest.approx((v - answer).square().mean().item(), rel=1e-4)


def test_an_objective_may_keep_a_state_that_a_killed_run_finds_again(recorded, trajectories, tmp_path, monkeypatch):
    def loss(sample, student, teacher, mean):
        losses = regression.trajectory(sample, student, teacher)
        mean.lerp_(losses.detach().mean(), 0.3)
        return losses / (1 + mean)

    objective = Objective(loss=loss, rate=constant, guided=True, state=lambda: {"mean": torch.zeros(())})
    monkeypatch.setitem(OBJECTIVES, "relative", objective)
    job = make_job(recorded, objective="relative")
    history, state = run(recorded, trajectories, job)
    run(recorded, trajectories, job, Checkpoint(tmp_path, every=3), stop=5)
    assert torch.load(tmp_path / loop.CHECKPOINT, weights_only=True)["tensors"]["mean"] > 0
    again, resumed = run(recorded, trajectories, job, Checkpoint(tmp_path, every=3))
    assert again == history
    assert all(torch.equal(resumed[key], state[key]) for key in state)


def test_history_files(tmp_path):
    records = [TrainStep(0, 0.5, 1e-3), TrainStep(1, 0.25, 5e-4)]
    loop.write_history(tmp_path / "one.csv", {None: records})
    loop.write_history(tmp_path / "many.csv", {"single": records[:1], "official_slow": records})
    loop.write_history(tmp_path / "none.csv", {})
    assert (tmp_path / "one.csv").read_text() == "train_step,loss,learning_rate\n0,0.5,0.001\n1,0.25,0.0005\n"
    rows = list(csv.DictReader((tmp_path / "many.csv").open()))
    assert [row["arm"] for row in rows] == ["single", "official_slow", "official_slow"]
    assert (tmp_path / "none.csv").read_text() == "arm,train_step,loss,learning_rate\n"
