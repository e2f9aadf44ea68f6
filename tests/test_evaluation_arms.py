from dataclasses import replace

import pytest
import torch

from pipeline.evaluation import arms, latency, recipes
from pipeline.evaluation.latency import Work
from pipeline.flow.sampling import StepPlan
from pipeline.flow.schedule import Schedule
from pipeline.training.rivals import RIVALS, expert_of

SCHEDULE = Schedule(mu=0.5)
STUDENT_U = (1.0, 0.94, 0.88, 0.8, 0.64, 0.48, 0.32, 0.16)
CONDITIONS = recipes.Conditions(
    schedule=SCHEDULE,
    teacher_steps=50,
    student=StepPlan(SCHEDULE.sigmas(STUDENT_U), ("slow",) * 3 + ("fast",) * 5),
    teacher_scale=3.0,
    student_scale=1.0,
    rivals=("single", "official"),
    free=(),
    swaps=("slow_only", "fast_only", "swapped"),
)


def by_name(conditions=CONDITIONS):
    return {arm.name: arm for arm in arms.build(conditions)}


def test_every_arm_costs_what_it_is_compared_at():
    assert {name: arm.nfe for name, arm in by_name().items()} == {
        "teacher": 100,
        "base_guided": 16,
        "base_unguided": 8,
        "base_guided_equal_cost": 8,
        "student": 8,
        "slow_only": 8,
        "fast_only": 8,
        "single": 8,
        "swapped": 8,
        "official": 8,
    }


def test_adapters_act_in_their_phase():
    plans = {name: arm.plan.adapters for name, arm in by_name().items()}
    assert plans["student"] == ("slow",) * 3 + ("fast",) * 5
    assert plans["swapped"] == ("fast",) * 3 + ("slow",) * 5
    assert plans["slow_only"] == ("slow",) * 8 and plans["fast_only"] == ("fast",) * 8
    assert plans["single"] == ("single",) * 8
    assert plans["official"] == ("official_slow",) * 3 + ("official_fast",) * 5
    assert plans["teacher"] == (None,) * 50 and plans["base_unguided"] == (None,) * 8


def test_base_arms_step_evenly_and_the_student_on_its_own_levels():
    found = by_name()
    u = torch.tensor([1, 0.75, 0.5, 0.25], dtype=torch.float64)
    torch.testing.assert_close(found["base_guided_equal_cost"].plan.sigmas, CONDITIONS.schedule.sigmas(u))
    torch.testing.assert_close(found["student"].plan.sigmas, CONDITIONS.student.sigmas)
    for arm in found.values():
        assert arm.plan.sigmas[0] == 1 and arm.plan.sigmas[-1] == 0 and arm.question.endswith((".", "?"))


def test_every_arm_of_adapters_moves_as_the_student_does():
    moves = torch.full((8,), -0.2, dtype=torch.float64)
    found = by_name(replace(CONDITIONS, student=replace(CONDITIONS.student, moves=moves)))
    for name, arm in found.items():
        bare = set(arm.plan.adapters) == {None}
        assert sum(arm.plan.d_sigmas) == pytest.approx(-1 if bare else -1.6), name


def test_a_guided_student_is_met_at_its_own_cost():
    found = by_name(replace(CONDITIONS, student_scale=3.0))
    assert found["student"].nfe == 16 and found["base_guided_equal_cost"].nfe == 16


def test_an_unguided_teacher_takes_one_forward_a_step():
    found = by_name(replace(CONDITIONS, teacher_scale=1.0))
    assert [found[name].nfe for name in ("teacher", "base_guided", "base_guided_equal_cost")] == [50, 8, 8]


def test_a_student_of_one_forward_still_meets_a_guided_step():
    student = StepPlan(SCHEDULE.sigmas([1.0]), ("fast",))
    assert by_name(replace(CONDITIONS, student=student))["base_guided_equal_cost"].steps == 1


def test_rivals_without_adapters_are_left_out():
    assert "single" not in by_name(replace(CONDITIONS, rivals=("official",)))
    assert not {"single", "official"} & by_name(replace(CONDITIONS, rivals=())).keys()


def test_swaps_that_are_not_asked_for_are_left_out():
    assert by_name().keys() - by_name(replace(CONDITIONS, swaps=("fast_only",))).keys() == {"slow_only", "swapped"}


def test_an_unknown_rival_or_swap_is_refused():
    with pytest.raises(ValueError, match="evaluation.swaps must be among slow_only, fast_only, swapped, got 'single'"):
        arms.build(replace(CONDITIONS, swaps=("single",)))
    with pytest.raises(ValueError, match=f"train_controls.arms must be among {', '.join(RIVALS)}, got 'twin'"):
        arms.build(replace(CONDITIONS, rivals=("twin",)))


def test_arms_share_a_workload_when_their_steps_do_the_same_work():
    work = {name: arm.workload for name, arm in by_name(CONDITIONS).items()}
    assert work["student"] == work["swapped"] == work["official"]
    assert work["slow_only"] == work["fast_only"] == work["single"]
    others = ("teacher", "base_guided", "base_unguided", "base_guided_equal_cost", "student", "slow_only")
    assert len({work[name] for name in others}) == len(others)


class Clock:
    """A clock that only moves when something takes its time."""

    now = 0.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


def work(clock, encode_s, loop_s, decode_s, calls):
    def part(name, seconds):
        return lambda *given: (calls.append(name), clock.spend(seconds))

    return Work(part("prepare", 100), part("encode", encode_s), part("loop", loop_s), part("decode", decode_s))


def test_latency_is_the_median_of_loop_and_whole_without_the_preparation():
    clock, calls = Clock(), []
    seconds = iter([9.0, 1.0, 9.0, 2.0, 9.0, 60.0])  # an untimed run before each of three timed ones
    slow = Work(lambda: None, lambda n: None, lambda c: clock.spend(next(seconds)), lambda x: clock.spend(0.5))
    found = latency.measure({"slow": slow, "fast": work(clock, 0.1, 0.2, 0.3, calls)}, 3, clock)
    assert (found["slow"].loop_ms, found["slow"].total_ms) == pytest.approx((2000, 2500))
    assert (found["fast"].loop_ms, found["fast"].total_ms) == pytest.approx((200, 600))
    assert calls == ["prepare", *["encode", "loop", "decode"] * 2] * 3


def test_arms_take_turns_in_going_first():
    clock, order, rounds = Clock(), [], []
    works = {name: work(clock, 1, 1, 1, []) for name in "abc"}
    works = {n: replace(w, prepare=lambda n=n: order.append(n)) for n, w in works.items()}
    latency.measure(works, 3, clock, lambda: rounds.append(len(order)))
    assert "".join(order) == "abc" + "bca" + "cab" and rounds == [3, 6, 9]


def test_latency_needs_a_repeat():
    with pytest.raises(ValueError, match="evaluation.latency_repeats must be at least 1, got 0"):
        latency.measure({}, 0, Clock())


EVERY_FREE_ARM = replace(CONDITIONS, free=tuple(recipe.name for recipe in recipes.FREE))


@pytest.mark.parametrize("student_scale, budget", [(1.0, 8), (3.0, 16)])
def test_free_arms_cost_the_students_forwards_or_twice_as_many(student_scale, budget):
    found = by_name(replace(EVERY_FREE_ARM, student_scale=student_scale))
    costs = {recipe.name: found[recipe.name].nfe for recipe in recipes.FREE}
    at_twice = {"base_ab2", "base_dpm"}
    assert costs == {name: 16 if name in at_twice else budget for name in costs}


def test_free_arms_take_another_solver_or_other_guidance():
    found = by_name(EVERY_FREE_ARM)
    assert [found[name].plan.solver for name in ("base_ab2", "base_dpm", "base_guided")] == ["ab2", "dpm2m", "euler"]
    assert found["guidance_interval"].plan.guidance == ("asked",) * 3 + ("off",) * 2
    assert found["guidance_reuse"].plan.guidance == ("asked", "asked", "reused", "asked", "reused")
    assert found["guidance_reuse"].workload[0] == (2, 2, 1, 2, 1)


def test_free_arms_of_a_teacher_without_guidance_have_none_to_steer():
    found = by_name(replace(EVERY_FREE_ARM, teacher_scale=1.0))
    assert found["guidance_interval"].plan.guidance is None and found["guidance_interval"].nfe == 5


def test_an_unknown_free_arm_is_refused():
    with pytest.raises(ValueError, match="evaluation.free must be among base_ab2, .*, got 'heun'"):
        arms.build(replace(CONDITIONS, free=("heun",)))


def test_a_student_of_other_phases_than_slow_and_fast_has_no_swaps():
    student = StepPlan(SCHEDULE.sigmas(STUDENT_U), ("one",) * 3 + ("two",) * 5)
    assert not {"slow_only", "fast_only", "swapped"} & by_name(replace(CONDITIONS, student=student, rivals=())).keys()


def test_rivals_run_with_their_own_solver_and_others_with_the_students():
    student = replace(CONDITIONS.student, solver="ab2")
    found = by_name(replace(CONDITIONS, student=student, rivals=("single", "lcm", "lcm_euler")))
    solvers = {name: found[name].plan.solver for name in ("student", "swapped", "single", "lcm", "lcm_euler")}
    assert solvers == {"student": "ab2", "swapped": "ab2", "single": "ab2", "lcm": "renoise", "lcm_euler": "euler"}


def test_timestep_experts_own_equal_intervals_of_the_noise_level():
    assert [expert_of(sigma, 4) for sigma in (1.0, 0.76, 0.75, 0.5, 0.26, 0.25, 0.01)] == [4, 4, 3, 2, 2, 1, 1]
