import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import params as parameters
from pipeline.flow import snr
from pipeline.flow.schedule import Schedule, base_levels
from pipeline.partition import RULES, Partition, compute, plot

FLUX_1024 = Schedule(mu=1.15)


def params_with(teacher_steps=50, recorded_steps=None, **changes):
    """The shipped parameters with another recording, of every step of the teacher by default, and another partition."""
    params = parameters.load(Path(__file__).parent.parent / "params.yaml")
    teacher = replace(params.teacher, steps=teacher_steps)
    trajectories = replace(params.trajectories, steps=recorded_steps or teacher_steps)
    partition = replace(params.partition, **changes)
    return replace(params, teacher=teacher, trajectories=trajectories, partition=partition)


@pytest.mark.parametrize(
    ("rule", "slow_steps", "fast_steps", "slow", "fast"),
    [
        ("official", 5, 5, (0, 2, 4, 6, 8), (10, 20, 30, 40, 49)),  # the official lists, see test_schedule.py
        ("official", 1, 1, (0,), (10,)),
        ("official", 2, 3, (0, 8), (10, 30, 49)),
        ("snr", 5, 5, (0, 2, 4, 6, 8), (10, 18, 26, 34, 42)),
        ("snr", 1, 4, (0,), (10, 20, 30, 40)),
        ("uniform", 4, 4, (0, 6, 12, 19), (25, 31, 38, 44)),
        ("uniform", 5, 5, (0, 5, 10, 15, 20), (25, 30, 35, 40, 45)),
    ],
)
def test_steps_of_each_rule(rule, slow_steps, fast_steps, slow, fast):
    partition = compute(params_with(rule=rule, slow_steps=slow_steps, fast_steps=fast_steps), FLUX_1024)
    assert (partition.slow.steps, partition.fast.steps) == (slow, fast)


@pytest.mark.parametrize(
    ("rule", "fast"),
    [("snr", (10, 20, 30, 39, 49)), ("uniform", (25, 31, 37, 43, 49)), ("official", (10, 20, 30, 40, 49))],
)
def test_a_stretched_schedule_keeps_the_teachers_last_step(rule, fast):
    """So the student's own run, stretched by its own last level, lies on the teacher's levels."""
    qwen = Schedule(mu=0.69355, shift_terminal=0.02)
    partition = compute(params_with(rule=rule, slow_steps=5, fast_steps=5), qwen)
    assert partition.fast.steps == fast
    assert qwen.sigmas(partition.u).tolist() == pytest.approx(partition.sigmas, abs=1e-12)


def test_one_fast_step_cannot_keep_both_ends_of_a_stretched_schedule():
    with pytest.raises(ValueError, match="partition.fast_steps must be at least 2 for a schedule with a terminal"):
        compute(params_with(rule="snr", fast_steps=1), Schedule(mu=0.7, shift_terminal=0.02))


@pytest.mark.parametrize("threshold_u", [0.9, 0.8, 0.79, 0.5])
@pytest.mark.parametrize("teacher_steps", [20, 28, 50])
def test_the_handoff_of_rule_snr_is_the_first_level_at_or_below_the_threshold(threshold_u, teacher_steps):
    partition = compute(
        params_with(teacher_steps, rule="snr", threshold_u=threshold_u, slow_steps=1, fast_steps=2), FLUX_1024
    )
    levels = base_levels(teacher_steps)
    step = partition.fast.steps[0]
    assert levels[step] <= threshold_u + 1e-9 < levels[step - 1]
    assert partition.handoff == FLUX_1024.sigmas(levels)[step]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("teacher_steps", [28, 50, 100])
def test_both_phases_are_one_path_on_the_teachers_levels(rule, teacher_steps):
    partition = compute(params_with(teacher_steps, rule=rule, slow_steps=3, fast_steps=5), FLUX_1024)
    slow, fast = partition.slow, partition.fast
    assert slow.sigmas[-1] == fast.sigmas[0] == partition.handoff and slow.end == fast.steps[0]
    assert partition.steps[0] == 0 and partition.steps[-1] == fast.end == teacher_steps
    assert list(partition.steps) == sorted(set(partition.steps)) and len(partition.steps) == 9
    teacher_sigmas = FLUX_1024.sigmas(base_levels(teacher_steps))
    assert list(partition.sigmas) == teacher_sigmas[list(partition.steps)].tolist()
    assert list(partition.sigmas) == pytest.approx(FLUX_1024.sigmas(partition.u).tolist(), abs=1e-12)
    assert sum(b - a for a, b in zip(partition.sigmas, partition.sigmas[1:], strict=False)) == pytest.approx(-1)
    for phase in (slow, fast):
        assert phase.timesteps == tuple(1000 * sigma for sigma in phase.sigmas[:-1])
        assert phase.snr == pytest.approx([float(snr(sigma)) for sigma in phase.sigmas[:-1]])
    assert slow.pairs + fast.pairs == tuple(zip(partition.steps, partition.steps[1:], strict=False))
    assert partition.slow.snr + partition.fast.snr == tuple(sorted(partition.slow.snr + partition.fast.snr))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "golden"}, f"partition.rule must be one of {', '.join(RULES)}, got 'golden'"),
        ({"slow_steps": 11}, "partition.slow_steps must fit into the 10 recorded steps that rule snr gives the slow"),
        ({"fast_steps": 41}, "partition.fast_steps must fit into the 40 recorded steps that rule snr gives the fast"),
        ({"threshold_u": 1.0}, "partition.slow_steps must fit into the 0 recorded steps"),
        ({"threshold_u": 0.01}, "partition.threshold_u must be at least the last level 0.02, got 0.01"),
        ({"rule": "uniform", "slow_steps": 40, "fast_steps": 40}, "partition.slow_steps must fit into"),
        ({"rule": "official", "slow_steps": 10}, "partition.slow_steps must fit into the 10 recorded steps that rule"),
        ({"rule": "official", "slow_steps": 2, "teacher_steps": 10}, r"slow steps \[0, 2\] must end before .* step 2"),
    ],
)
def test_a_split_that_collides_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        compute(params_with(**changes), FLUX_1024)


@pytest.mark.parametrize(("slow", "fast"), [([1, 5], [10, 20]), ([-1, 5], [10, 20]), ([0, 5], [10, 50])])
def test_a_rule_whose_steps_leave_the_recorded_path_is_refused(slow, fast, monkeypatch):
    monkeypatch.setitem(RULES, "stray", lambda settings, num_steps: (slow, fast))
    message = re.escape(f"partition.rule must give steps from 0 to at most 49, got {slow} and {fast} from stray")
    with pytest.raises(ValueError, match=message):
        compute(params_with(rule="stray"), FLUX_1024)


def test_a_rule_that_leaves_a_phase_empty_is_refused(monkeypatch):
    monkeypatch.setitem(RULES, "stray", lambda settings, num_steps: ([0], []))
    message = re.escape("partition.rule must give both phases a step, got [0] and [] from stray")
    with pytest.raises(ValueError, match=message):
        compute(params_with(rule="stray"), FLUX_1024)


@pytest.mark.parametrize("terminal", [None, 0.02])
def test_fewer_recorded_steps_keep_to_their_levels_and_name_the_teachers_steps(terminal):
    schedule = Schedule(mu=0.7, shift_terminal=terminal)
    partition = compute(params_with(recorded_steps=10, slow_steps=2, fast_steps=3), schedule)
    alone = compute(params_with(teacher_steps=10, slow_steps=2, fast_steps=3), schedule)
    assert (partition.u, partition.sigmas) == (alone.u, alone.sigmas)
    assert partition.steps == tuple(5 * step for step in alone.steps) and partition.teacher_steps == 50
    assert partition.slow.u == tuple(1 - step / 50 for step in partition.slow.steps)


def test_json_round_trip_is_exact():
    partition = compute(params_with(), Schedule(mu=0.5, shift_terminal=0.02))
    assert Partition.from_json(json.loads(json.dumps(partition.to_json()))) == partition


def test_json_names_the_handoff():
    partition = compute(params_with(), FLUX_1024)
    assert partition.to_json()["handoff"] == {"step": 10, "u": 0.8, "sigma": partition.handoff}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"version": 2}, "version must be 1, got 2"), ({"phases": {}}, "not a partition of this project")],
)
def test_json_of_another_kind_is_refused(change, message):
    content = compute(params_with(), FLUX_1024).to_json()
    with pytest.raises(ValueError, match=message):
        Partition.from_json(content | change)


def test_plot_writes_the_same_picture_twice(tmp_path):
    partition = compute(params_with(), FLUX_1024)
    for name in ("one.png", "two.png"):
        plot(partition, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    other = compute(params_with(rule="uniform"), FLUX_1024)
    plot(other, tmp_path / "three.png")
    assert (tmp_path / "three.png").read_bytes() != (tmp_path / "one.png").read_bytes()
