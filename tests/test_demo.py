"""What the page draws and says, without the page: drawings, the switch, stops, two visitors, refusals."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Thread

import numpy as np
import pytest
import torch

from pipeline import backbones
from pipeline.bundle.generating import generate
from pipeline.bundle.manifest import bundle_digest
from pipeline.demo import asking, contract, faults, markup, measured, surroundings, texts, ways
from pipeline.demo.asking import Asked
from pipeline.demo.clock import Clock
from pipeline.demo.drawing import nearest
from pipeline.demo.gallery import gallery
from pipeline.demo.race import STUDENT, TEACHER, Sight, race
from pipeline.demo.studio import Studio, phases
from pipeline.demo.visits import Visits
from pipeline.demo.watching import Stopped, watched
from pipeline.flow.sampling import StepPlan
from tests.pairs import make_pair

ASKED = Asked("a red star", 7)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def studio(pair):
    made = Studio(device="cpu")
    yield made
    made.close()


@pytest.fixture(scope="module")
def choice(studio, pair):
    return studio.load(pair.bundle.folder, "mine")


def ended(generator):
    """The generator's reports, and what it returns."""
    reports = []
    try:
        while True:
            reports.append(next(generator))
    except StopIteration as end:
        return reports, end.value


def student(studio, choice, way=ways.WHOLE, asked=ASKED):
    return ended(studio.student(choice, way, asked, Event(), frames=True))[1]


def teacher(studio, choice, asked=ASKED):
    return ended(studio.teacher(choice, asked, Event(), frames=True))[1]


def test_the_student_draws_the_picture_of_glance_generate(studio, choice, pair):
    backbone = backbones.load(pair.recorded.teacher, "cpu")
    drawn = student(studio, choice)
    assert np.array_equal(drawn.image, generate(backbone, pair.bundle, ["a red star"], [7])[0].numpy())
    assert drawn.forwards == drawn.total == len(pair.bundle.steps)


def test_the_teacher_draws_the_picture_of_the_stock_pipeline(studio, choice, pair):
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(pair.recorded.teacher)
    pipe.set_progress_bar_config(disable=True)
    guidance = pair.bundle.guidance
    image = pipe(
        "a red star",
        num_inference_steps=8,
        true_cfg_scale=guidance.teacher_true_cfg_scale,
        negative_prompt=guidance.negative_prompt,
        height=64,
        width=64,
        max_sequence_length=pair.bundle.max_sequence_length,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    drawn = teacher(studio, choice)
    assert np.abs((image * 255).round() - drawn.image).max() <= 1
    assert drawn.forwards == drawn.total == 16


def test_frames_go_from_noise_to_the_picture_at_the_same_levels(studio, choice, pair):
    for drawn in (student(studio, choice), teacher(studio, choice)):
        sigmas = [frame.sigma for frame in drawn.frames]
        assert sigmas == pytest.approx([*choice.levels, 0])  # the student's steps are steps of this teacher
        assert np.array_equal(drawn.frames[-1].estimate, drawn.image)
        assert not np.array_equal(drawn.frames[0].estimate, drawn.frames[0].state)
    backbone = backbones.load(pair.recorded.teacher, "cpu")
    first = backbone.decode(backbone.noise([7], 64, 64), 64, 64)[0].numpy()
    assert np.array_equal(student(studio, choice).frames[0].state, first)


def test_every_way_gives_another_picture_and_its_own_adapters(studio, choice):
    names = [way.name for way in ways.ways(("slow", "fast"))]
    assert names == ["pair", "slow_only", "fast_only", "swapped", "neither"]
    pictures = {student(studio, choice, name).image.tobytes() for name in names}
    assert len(pictures) == len(names)
    acting = {name: ways.find(choice.bundle, name).plan(choice.student).adapters for name in names}
    assert acting["pair"] == ("slow", "slow", "fast", "fast")
    assert acting["swapped"] == ("fast", "fast", "slow", "slow")
    assert acting["slow_only"] == ("slow",) * 4 and acting["neither"] == (None,) * 4


def test_no_adapter_stays_on_the_base(studio, choice):
    before = teacher(studio, choice).image
    student(studio, choice, "swapped")
    assert np.array_equal(teacher(studio, choice).image, before)


def test_ways_of_other_bundles_are_all_adapters_or_one_of_them():
    assert [way.name for way in ways.ways(("one", "two", "three"))] == [
        *("pair", "one_only", "two_only", "three_only", "neither")
    ]
    plan = StepPlan(torch.tensor([1.0, 0.6, 0.3, 0.0]), ("one", "two", "three"))
    assert ways.ways(("one", "two", "three"))[2].plan(plan).adapters == ("two",) * 3


def test_a_race_draws_the_student_first_and_keeps_the_teacher_for_another_way(studio, choice):
    sights = list(race(studio, Sight(choice=choice), ASKED, "pair", Event(), again=True))
    first = next(sight for sight in sights if sight.drawings.get(STUDENT) and sight.drawings[STUDENT].done)
    assert TEACHER not in first.drawings
    last = sights[-1]
    assert last.drawings[TEACHER].done and "times as fast" in texts.verdict(last)
    switched = list(race(studio, last, ASKED, "fast_only", Event(), again=False))[-1]
    assert switched.drawings[TEACHER] is last.drawings[TEACHER]
    assert not np.array_equal(switched.drawings[STUDENT].image, last.drawings[STUDENT].image)
    assert "The fast adapter acts in all steps." in texts.verdict(switched)
    other = list(race(studio, last, replace(ASKED, seed=8), "pair", Event(), again=False))[-1]
    assert other.drawings[TEACHER] is not last.drawings[TEACHER]


def test_a_stop_leaves_what_was_drawn(studio, choice):
    stop, seen = Event(), []
    for sight in race(studio, Sight(choice=choice), ASKED, "pair", stop, again=True):
        seen.append(sight)
        stop.set()
    assert seen[-1].stopped and texts.verdict(seen[-1]) == texts.STOPPED
    assert TEACHER not in seen[-1].drawings
    assert student(studio, choice).done  # the studio still draws


def test_two_visitors_get_their_own_pictures(studio, choice):
    alone = {seed: student(studio, choice, asked=replace(ASKED, seed=seed)).image for seed in (1, 2, 3)}
    found = {}

    def visit(seed):
        sights = race(studio, Sight(choice=choice), replace(ASKED, seed=seed), "pair", Event(), again=True)
        found[seed] = list(sights)[-1]

    threads = [Thread(target=visit, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, sight in found.items():
        assert np.array_equal(sight.drawings[STUDENT].image, alone[seed])
    assert len({sight.drawings[TEACHER].image.tobytes() for sight in found.values()}) == 3


def test_the_gallery_has_a_row_for_each_with_the_same_seeds(studio, choice):
    shown = list(gallery(studio, choice, ASKED, "pair", 4, Event()))[-1]
    assert {who: len(row) for who, row in shown.rows.items()} == {STUDENT: 4, TEACHER: 4}
    second = student(studio, choice, asked=replace(ASKED, seed=8))
    assert np.array_equal(shown.rows[STUDENT][1].image, second.image)
    assert markup.seeds(shown).count("<img") == 8
    stop = Event()
    stop.set()
    assert list(gallery(studio, choice, ASKED, "pair", 4, stop))[-1].stopped


def test_a_base_of_another_model_a_missing_one_and_a_broken_bundle_are_sentences(studio, pair, tmp_path):
    for change, words in (
        (lambda manifest: manifest | {"base_digest": "sha256:" + 64 * "0"}, "was made for another model than"),
        (lambda manifest: manifest | {"base_model": str(tmp_path / "gone")}, "is not here"),
        (lambda manifest: manifest | {"rank": 5}, "must have rank 5"),
    ):
        folder = tmp_path / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pair.bundle.folder, folder)
        manifest = change(json.loads((folder / "glance.json").read_text()))
        (folder / "glance.json").write_text(json.dumps(manifest))
        with pytest.raises(faults.SAID, match=words) as raised:
            studio.load(folder, "bad")
        assert faults.sentence(raised.value).endswith(".")
    with pytest.raises(ValueError, match="is no bundle: glance.json is missing"):
        studio.load(tmp_path, "none")


def test_errors_of_memory_are_said_and_defects_are_not():
    assert "too little memory" in faults.sentence(MemoryError())
    with pytest.raises(RuntimeError, match="a defect"):
        faults.sentence(RuntimeError("a defect"))


def test_the_teacher_alone_needs_no_pair(studio, pair):
    own = pair.recorded.params
    alone = Studio(device="cpu")
    try:
        choice = alone.teacher_alone(own)
        last = list(race(alone, Sight(choice=choice), ASKED, "pair", Event(), again=True))[-1]
        assert set(last.drawings) == {TEACHER} and "The teacher took" in texts.verdict(last)
        assert phases(choice) == () and "Student" not in markup.stage(last)
        assert dict(contract.rows(choice, None))["teacher"].startswith("8 steps")
    finally:
        alone.close()


@pytest.mark.parametrize(
    ("prompt", "seed", "words"),
    [
        ("", 7, "the prompt must hold a visible character, got none"),
        (" \u200b\n", 7, "the prompt must hold a visible character"),
        (None, 7, "the prompt must hold a visible character"),
        ("a" * 2001, 7, "the prompt must have at most 2000 characters, got 2001"),
        ("a\ud800", 7, "the prompt must be text"),
        ("a red star", None, "the seed must be a whole number from 0 to 9007199254740991, got none"),
        ("a red star", 1.5, "the seed must be a whole number .* got 1.5"),
        ("a red star", -1, "the seed must be a whole number .* got -1"),
        ("a red star", 2**53, "the seed must be a whole number .* got 9007199254740992"),
    ],
)
def test_a_bad_prompt_or_seed_is_one_sentence(prompt, seed, words):
    with pytest.raises(ValueError, match=words):
        asking.check(prompt, seed)


def test_the_last_seed_of_a_gallery_is_in_the_range():
    assert asking.check("x", asking.LAST_SEED).seed == asking.LAST_SEED
    with pytest.raises(ValueError, match="the seed must be"):
        asking.check("x", asking.LAST_SEED, count=4)
    with pytest.raises(ValueError, match="the number of seeds must be a whole number from 4 to 8, got 9"):
        asking.check_count(9)


def test_a_prompt_of_two_thousand_characters_is_cut_off_by_the_text_encoder(studio, choice):
    asked = asking.check("a red star " * 181, 7)
    assert len(asked.prompt) > 1900
    assert student(studio, choice, asked=asked).done


def test_facts_of_the_pair(choice, pair):
    known = measured.Retention(0.964, 0.941, 0.985, "artifacts/evaluation")
    rows = dict(contract.rows(choice, known))
    assert rows["base digest"] == pair.bundle.base_digest and rows["bundle digest"] == bundle_digest(pair.bundle.folder)
    assert rows["retention"] == "96.4 % [94.1, 98.5] of the teacher's score (artifacts/evaluation)"
    assert rows["handoff"].endswith("slow to fast") and rows["rank"] == "3"
    assert dict(contract.rows(choice, None))["retention"] == contract.UNKNOWN


def test_the_retention_is_that_of_the_evaluation_with_the_same_digest(tmp_path):
    assert measured.retention("sha256:1", here=tmp_path) is None
    for name, digest, value in (("artifacts/evaluation", "sha256:1", 0.9), ("evaluation-other", "sha256:2", 0.8)):
        (tmp_path / name).mkdir(parents=True)
        row = {"retention": value, "retention_low": 0.7, "retention_high": 1.0}
        content = {"bundle_digest": digest, "arms": {"student": row}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))
    assert measured.retention("sha256:2", here=tmp_path).value == 0.8
    assert measured.retention("sha256:1", here=tmp_path).value == 0.9
    (tmp_path / "artifacts/evaluation/metrics.json").write_text("{")
    assert measured.retention("sha256:1", here=tmp_path) is None


def test_markup_escapes_what_people_type(choice):
    hostile = '<script>alert("x")</script>'
    drawn = Sight(choice=replace(choice, name=hostile), asked=Asked(hostile, 1))
    page = markup.head(drawn.choice) + markup.stage(drawn) + markup.error(hostile) + markup.facts([(hostile, hostile)])
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_strip_marks_the_handoff_once(choice):
    shown = markup.strip(Sight(choice=choice))
    assert shown.count("g-handoff") == 1 and shown.count("g-level ") == len(choice.levels) + 1


def test_a_clock_leaves_out_its_pauses():
    now = iter([0.0, 10.0, 25.0, 26.0])
    clock = Clock(torch.device("cpu"), lambda: next(now))
    with clock.running():
        with clock.paused():
            assert clock.seconds == 10
    assert clock.seconds == 11


def test_nearest_levels():
    assert nearest([1.0, 0.9, 0.5, 0.1], [0.98, 0.4, 0.0]) == [0, 2, 3]


def test_watched_yields_the_latest_report_and_returns_the_result():
    with ThreadPoolExecutor(1) as executor:

        def work(tell):
            for number in range(5):
                tell(number)
                time.sleep(0.05)
            return "done"

        reports, result = ended(watched(executor, work, lambda: False, every_s=0.02))
        assert result == "done" and reports == sorted(reports) and 4 in reports


def test_watched_work_ends_when_nobody_looks_or_the_caller_stops():
    with ThreadPoolExecutor(1) as executor:
        ends = []

        def work(tell):
            try:
                while True:
                    tell(1)
                    time.sleep(0.01)
            except Stopped:
                ends.append(True)
                raise

        looking = watched(executor, work, lambda: False, every_s=0.02)
        next(looking)
        looking.close()
        stop = Event()
        second = watched(executor, work, stop.is_set, every_s=0.02)
        assert next(second) == 1 or next(second) == 1
        stop.set()
        with pytest.raises(Stopped):
            ended(second)
        assert ends == [True, True]


def test_watched_raises_what_the_work_raises():
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="broken"):
        ended(watched(executor, lambda tell: (_ for _ in ()).throw(ValueError("broken")), lambda: False))


def test_a_new_drawing_stops_the_visitors_old_one_and_no_other():
    visits = Visits()
    mine, other = visits.begin("me"), visits.begin("you")
    newer = visits.begin("me")
    assert mine.is_set() and not other.is_set() and not newer.is_set()
    assert visits.current("me", newer) and not visits.current("me", mine)
    visits.stop("me")
    visits.leave("you")
    assert newer.is_set() and other.is_set()


def test_the_surroundings_keep_to_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("os.environ", {"NO_PROXY": "example.org"})
    surroundings.keep_to(tmp_path)
    import os

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert all(str(tmp_path) in os.environ[name] for name in surroundings.FOLDERS)
