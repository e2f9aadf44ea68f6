"""The rivals that are trained: their budgets, and that one entry of the table is all that a new one needs."""

from dataclasses import replace

import pytest
import torch

from pipeline import adapters, artifacts
from pipeline.ablations import grid
from pipeline.evaluation import inputs
from pipeline.evaluation.arms import student_steps
from pipeline.partition import two_phase_plan
from pipeline.training import jobs, loop, rivals, trainers
from pipeline.training.costs import BACKWARD, pair_budget
from pipeline.training.rivals import RIVALS, Rival, always
from tests.evaluation_case import make_artifacts, small_params
from tests.recorded import record_tiny, workplace


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_tiny(tmp_path_factory.mktemp("recorded"))


def with_arms(params, *names):
    return replace(params, train_controls=replace(params.train_controls, arms=names))


def test_the_rivals_have_the_budgets_that_their_names_promise(recorded):
    rates = {"train_slow": 1e-3, "train_fast": 3e-3}
    phases = {name: replace(getattr(recorded.params, name), learning_rate=rate) for name, rate in rates.items()}
    params = replace(recorded.params, **phases)
    single, slow, fast = rivals.jobs(params, recorded.loaded())
    assert [job.name for job in (single, slow, fast)] == ["single", "official_slow", "official_fast"]
    assert single.steps == recorded.partition.slow.pairs + recorded.partition.fast.pairs
    assert (single.settings.train_steps, single.settings.learning_rate) == (16, pytest.approx(2e-3))
    assert (slow.steps, fast.steps) == (recorded.partition.slow.pairs, recorded.partition.fast.pairs)


def test_the_official_pair_is_trained_as_its_section_says(recorded):
    shipped = recorded.params.official
    assert (shipped.objective, shipped.train_steps, shipped.samples) == ("flow", 60, 1)
    section = replace(
        shipped, objective="trajectory", rank=3, alpha=5.0, targets="all", batch=2, learning_rate=0.1, train_steps=7
    )
    params = with_arms(replace(recorded.params, official=replace(section, samples=4)), "official")
    pair = rivals.jobs(params, recorded.loaded())
    for i, job in enumerate(pair):
        settings = job.settings
        found = {name: getattr(settings, name) for name in vars(shipped) if name != "samples"}
        assert found | {"samples": job.trajectories} == vars(params.official)
        assert settings.seed == params.train_controls.seed + i
        assert settings.precision == params.training.precision


def test_no_rivals_and_unknown_rivals(recorded):
    assert rivals.jobs(with_arms(recorded.params), recorded.loaded()) == []
    with pytest.raises(ValueError, match=f"train_controls.arms must be among {', '.join(RIVALS)}, got 'double'"):
        rivals.jobs(with_arms(recorded.params, "double"), recorded.loaded())


@pytest.mark.parametrize("name", RIVALS)
def test_the_adapters_that_act_are_those_that_are_trained(recorded, name):
    data, trained = recorded.loaded(), []
    for job in RIVALS[name].jobs(recorded.params, data):
        trained += trainers.TRAINERS[job.trainer](recorded.backbone(), data.trajectories, job, None).trained()
    used = RIVALS[name].adapters(student_steps(two_phase_plan(recorded.partition)))
    assert set(used) == set(trained) and len(trained) == len(set(trained))


class Count:
    """Forward equivalents of the transformer's rows: a call with gradients counts its backward too."""

    def __init__(self, transformer):
        self.total = 0
        transformer.register_forward_hook(self, with_kwargs=True)

    def __call__(self, transformer, args, kwargs, output):
        self.total += len(kwargs["hidden_states"]) * (1 + BACKWARD if torch.is_grad_enabled() else 1)


COUNTED = [
    (name, scale) for name in RIVALS for scale in (1.0, 3.0) if name != "official" and (name, scale) != ("pdd", 3.0)
]


@pytest.mark.parametrize("name, true_cfg_scale", COUNTED)
def test_every_rival_has_the_budget_of_the_pair(recorded, name, true_cfg_scale):
    """By the forwards that a few train steps really take, times all train steps."""
    phases = {
        phase: replace(getattr(recorded.params, phase), train_steps=400) for phase in ("train_slow", "train_fast")
    }
    training = replace(recorded.params.training, batch=2)
    student = replace(recorded.params.student, true_cfg_scale=true_cfg_scale)
    params, data, spent = replace(recorded.params, training=training, student=student, **phases), recorded.loaded(), 0.0
    for job in RIVALS[name].jobs(params, data):
        backbone, steps = recorded.backbone(), 8 if job.trainer == "dmd2" else 2
        count, records = Count(backbone.transformer), loop.train(backbone, data.trajectories, job)
        next(records)
        count.total = 0  # a trainer may look at the model before its first step
        for _ in range(steps):
            next(records)
        spent += count.total / steps * job.settings.train_steps
    assert spent == pytest.approx(pair_budget(params), rel=0.15 if name == "dmd2" else 0.03)


def late(params, data):
    """A toy: the fast adapter, from one trajectory, in every step."""
    job = jobs.of_phase(params, data, "fast")
    return [replace(job, name="late", trajectories=1)]


@pytest.fixture
def toy(monkeypatch):
    rival = Rival(title="Late adapter", question="A toy?", jobs=late, adapter=always("late"))
    monkeypatch.setitem(RIVALS, "toy", rival)


def test_one_entry_makes_a_rival_trained(recorded, tmp_path, toy, run_stage):
    folder = workplace(tmp_path / "here", recorded, train_controls={"arms": ["toy"]})
    run_stage(folder, "train_controls")
    assert (folder / artifacts.TRAIN_CONTROLS / "late" / adapters.WEIGHTS).is_file()
    rows = (folder / artifacts.TRAIN_CONTROLS / "history.csv").read_text().splitlines()
    assert len(rows) == 9 and rows[1].startswith("late,0,")


def test_one_entry_makes_a_rival_an_arm_of_evaluations_and_ablations(tmp_path, toy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = with_arms(small_params(), "toy")
    make_artifacts(params)
    source = inputs.of_stages(params)
    assert source.controls == ("toy",) and all(map(source.trained, ("slow", "fast", "late")))
    found = inputs.read(params, source)
    assert found.adapter_digests.keys() == {"slow", "fast", "late"}
    arm = found.arms[-1]
    assert (arm.name, arm.title, arm.question) == ("toy", "Late adapter", "A toy?")
    assert arm.plan.adapters == ("late",) * 4 and arm.nfe == 4
    asked = {"question": "Toy?", "arms": ["toy"], "variants": {"one": {}}, "plot": {"x": "nfe", "y": "psnr"}}
    assert grid.from_dict("toys", asked, params).arms == ("toy",)
