"""Which teacher steps the student keeps, and where the slow phase hands over to the fast one."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import flow, names
from pipeline.flow.sampling import StepPlan
from pipeline.flow.schedule import LEVEL_TOLERANCE, NUM_TRAIN_TIMESTEPS, Schedule, base_levels
from pipeline.params import Params, PartitionParams

PHASES = ("slow", "fast")


@dataclass(frozen=True)
class Phase:
    """The part of the student's path that one adapter owns: S Euler steps between states of the teacher."""

    name: str
    """"slow" or "fast" in the partition that is trained; else the name of its adapter."""
    steps: tuple[int, ...]
    """Teacher step at which each student step starts, length S."""
    end: int
    """Teacher step at which the last student step ends: the next phase's first, or the teacher's number of steps."""
    u: tuple[float, ...]
    """Base level at each start, length S."""
    sigmas: tuple[float, ...]
    """Noise level at each start, then at the end, length S + 1."""
    timesteps: tuple[float, ...]
    """1000 sigma at each start, which the transformer reads, length S."""
    snr: tuple[float, ...]
    """Signal-to-noise ratio at each start, length S."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(start, end) in teacher steps of each student step."""
        return tuple(pairwise((*self.steps, self.end)))


@dataclass(frozen=True)
class Partition:
    """The student's path of K steps. `compute` gives two phases, slow and fast, on the teacher's own noise levels."""

    rule: str
    teacher_steps: int
    schedule: Schedule
    phases: tuple[Phase, ...]
    """In order, each ending where the next one starts."""

    @property
    def slow(self) -> Phase:
        """The first phase."""
        return self.phases[0]

    @property
    def fast(self) -> Phase:
        """The last phase."""
        return self.phases[-1]

    @property
    def handoff(self) -> float:
        """The sigma at which the slow phase ends and the fast phase starts."""
        return self.fast.sigmas[0]

    @property
    def steps(self) -> tuple[int, ...]:
        """Teacher steps of the K starts, then the teacher's number of steps, length K + 1."""
        return (*(step for phase in self.phases for step in phase.steps), self.phases[-1].end)

    @property
    def u(self) -> tuple[float, ...]:
        """Base levels of the K starts, which stock pipelines take as `sigmas`."""
        return tuple(u for phase in self.phases for u in phase.u)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the K starts, then 0, length K + 1."""
        return (*(sigma for phase in self.phases for sigma in phase.sigmas[:-1]), self.phases[-1].sigmas[-1])

    def to_json(self) -> dict[str, Any]:
        """A partition of two phases, slow and fast, as JSON's types; from_json reads it back."""
        return {
            "version": 1,
            "rule": self.rule,
            "teacher_steps": self.teacher_steps,
            "schedule": asdict(self.schedule),
            "handoff": {"step": self.fast.steps[0], "u": self.fast.u[0], "sigma": self.handoff},
            "phases": {phase.name: asdict(phase) for phase in self.phases},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Partition":
        """Reads the output of to_json.

        Raises:
            ValueError: A key is missing, or the version is not 1.
        """
        try:
            if content["version"] != 1:
                raise ValueError(f"partition: version must be 1, got {content['version']}")
            phases = {}
            for name, phase in content["phases"].items():
                values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in phase.items()}
                phases[name] = Phase(**values)
            schedule = Schedule(**content["schedule"])
            return cls(content["rule"], content["teacher_steps"], schedule, tuple(phases[name] for name in PHASES))
        except (KeyError, TypeError) as error:
            raise ValueError(f"partition: not a partition of this project ({error})") from error


Rule = Callable[[PartitionParams, int], tuple[list[int], list[int]]]
"""(settings, number of recorded steps) -> the recorded steps at which the slow and the fast steps start."""


def snr(settings: PartitionParams, num_steps: int) -> tuple[list[int], list[int]]:
    """The handoff is the first step with u <= threshold_u; each phase's steps lie evenly in its own part.

    The SNR is a monotone function of u. A threshold in u means the same at every resolution, one in sigma does not.

    Raises:
        ValueError: The threshold leaves the fast phase without teacher steps.
    """
    levels = base_levels(num_steps).tolist()
    below = [step for step, u in enumerate(levels) if u <= settings.threshold_u + LEVEL_TOLERANCE]
    if not below:
        raise ValueError(
            f"partition.threshold_u must be at least the last level {levels[-1]:g}, got {settings.threshold_u:g}"
        )
    handoff = below[0]
    return spread(0, handoff, settings.slow_steps), spread(handoff, num_steps, settings.fast_steps)


def uniform(settings: PartitionParams, num_steps: int) -> tuple[list[int], list[int]]:
    """Spreads all steps evenly over the recorded ones; the slow phase owns the first slow_steps."""
    steps = spread(0, num_steps, settings.slow_steps + settings.fast_steps)
    return steps[: settings.slow_steps], steps[settings.slow_steps :]


def official(settings: PartitionParams, num_steps: int) -> tuple[list[int], list[int]]:
    """The official Glance lists: slow evenly from u = 1 to .84, fast from .80 to 0 with the last step kept above 0.

    With 5 + 5 of 50 steps that is 0 2 4 6 8 | 10 20 30 40 49. arXiv 2512.02899.
    """
    slow = _between(0, 0.16 * num_steps, settings.slow_steps)
    fast = _between(0.20 * num_steps, num_steps, settings.fast_steps)
    return slow, [min(step, num_steps - 1) for step in fast]


RULES: dict[str, Rule] = {"snr": snr, "uniform": uniform, "official": official}


def check(rule: str) -> None:
    """Raises ValueError unless there is a rule of this name."""
    names.check("partition.rule", rule, RULES)


def compute(params: Params, schedule: Schedule) -> Partition:
    """The partition that params.partition asks for, on the noise levels of a recording with this schedule.

    Some schedules stretch the last level of a run to a terminal value. There the student's last step starts where the
    recording's last step starts. Otherwise the student's levels would differ from the recorded ones.

    Raises:
        ValueError: The rule is unknown, or its steps do not fit into the recorded steps.
    """
    settings, num_steps = params.partition, params.trajectories.steps
    stride = params.teacher.steps // num_steps
    check(settings.rule)
    slow, fast = RULES[settings.rule](settings, num_steps)
    if schedule.shift_terminal:
        fast = _ending_with(fast, num_steps - 1)
    _check(settings, slow, fast, num_steps)
    levels = base_levels(num_steps)
    return Partition(
        rule=settings.rule,
        teacher_steps=params.teacher.steps,
        schedule=schedule,
        phases=(
            _phase("slow", slow, fast[0], levels, schedule, stride),
            _phase("fast", fast, num_steps, levels, schedule, stride),
        ),
    )


def two_phase_plan(partition: Partition, slow: str | None = "slow", fast: str | None = "fast") -> StepPlan:
    """The adapter `slow` in the slow phase's steps, `fast` from the handoff on."""
    adapters = (slow,) * len(partition.slow.steps) + (fast,) * len(partition.fast.steps)
    return StepPlan(torch.tensor(partition.sigmas, dtype=torch.float64), adapters)


def plot(partition: Partition, path: str | Path) -> None:
    """Draws SNR over the teacher's steps, with the handoff and the steps that the student keeps."""
    from matplotlib.figure import Figure  # the import takes a second, and only this function needs it

    ratios = flow.snr(partition.schedule.sigmas(base_levels(partition.teacher_steps))[:-1]).tolist()
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, partition.teacher_steps), ratios[1:], color="0.6", label="teacher")  # SNR is 0 at step 0
    for phase, colour in ((partition.slow, "tab:blue"), (partition.fast, "tab:orange")):
        shown = [max(ratios[step], ratios[1] / 4) for step in phase.steps]
        axes.plot(phase.steps, shown, "o", color=colour, label=f"{phase.name}: {len(phase.steps)} steps")
    handoff = partition.fast.steps[0]
    axes.axvline(handoff, color="0.3", linestyle="--", label=f"handoff: step {handoff}, u {partition.fast.u[0]:.3g}")
    axes.set(yscale="log", xlabel="teacher step", ylabel="signal-to-noise ratio", title=f"rule: {partition.rule}")
    axes.legend(frameon=False)
    figure.savefig(str(path), dpi=120, metadata={"Software": None})


def _phase(name: str, steps: list[int], end: int, levels: Tensor, schedule: Schedule, stride: int) -> Phase:
    """A phase of recorded steps; one recorded step is `stride` teacher steps."""
    sigmas = schedule.sigmas(levels)[[*steps, end]]
    return Phase(
        name=name,
        steps=tuple(stride * step for step in steps),
        end=stride * end,
        u=tuple(levels[steps].tolist()),
        sigmas=tuple(sigmas.tolist()),
        timesteps=tuple((NUM_TRAIN_TIMESTEPS * sigmas[:-1]).tolist()),
        snr=tuple(flow.snr(sigmas[:-1]).tolist()),
    )


def _check(settings: PartitionParams, slow: list[int], fast: list[int], num_steps: int) -> None:
    """Refuses steps of a rule that do not make one path over the recorded steps.

    Raises:
        ValueError: A phase has no step; a phase repeats a step, since it has fewer recorded steps than it needs; the
            phases overlap; the first step is not 0; or the last step is not a recorded one.
    """
    if not (slow and fast):
        raise ValueError(f"partition.rule must give both phases a step, got {slow} and {fast} from {settings.rule}")
    handoff = fast[0]
    for name, steps, room in (("slow", slow, handoff), ("fast", fast, num_steps - handoff)):
        if any(later <= earlier for earlier, later in pairwise(steps)) or len(steps) > room:
            raise ValueError(
                f"partition.{name}_steps must fit into the {room} recorded steps that rule {settings.rule} gives the "
                f"{name} phase, got {len(steps)}"
            )
    if slow[-1] >= handoff:
        raise ValueError(f"partition: slow steps {slow} must end before the first fast step {handoff}")
    if slow[0] != 0 or fast[-1] >= num_steps:
        raise ValueError(
            f"partition.rule must give steps from 0 to at most {num_steps - 1}, "
            f"got {slow} and {fast} from {settings.rule}"
        )


def _ending_with(steps: list[int], last: int) -> list[int]:
    """As many steps, spread evenly from the same first step to `last`.

    Raises:
        ValueError: There is one step alone, which cannot start at both.
    """
    if steps[-1] == last:
        return steps
    if len(steps) == 1:
        raise ValueError("partition.fast_steps must be at least 2 for a schedule with a terminal stretch, got 1")
    return _between(steps[0], last, len(steps))


def spread(first: int, end: int, count: int) -> list[int]:
    """`count` even steps from `first` on; the step after them would be `end`."""
    return [first + round(i * (end - first) / count) for i in range(count)]


def _between(first: float, last: float, count: int) -> list[int]:
    """`count` steps evenly from `first` to `last`, both included."""
    gaps = max(count - 1, 1)
    return [round(first + i * (last - first) / gaps) for i in range(count)]
