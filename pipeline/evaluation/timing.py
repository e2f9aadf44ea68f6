"""How long each arm takes per image, in one run: latency.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch

from pipeline import artifacts
from pipeline.evaluation import latency
from pipeline.evaluation.arms import Arm
from pipeline.evaluation.inputs import Inputs
from pipeline.evaluation.latency import Latency, Work
from pipeline.evaluation.recipes import REFERENCE
from pipeline.evaluation.sampler import Prompted
from pipeline.progress import Progress

LATENCY_BATCHES = (1, 16)


class Timing:
    """Times the arms of one evaluation; arms of equal work are timed once."""

    def __init__(self, given: Inputs) -> None:
        """
        Args:
            given: What the arms are made of.
        """
        self.given = given

    @property
    def batches(self) -> list[int]:
        """The batch sizes that are timed: those of LATENCY_BATCHES up to evaluation.batch, which fits into memory."""
        return [batch for batch in LATENCY_BATCHES if batch <= self.given.params.evaluation.batch]

    @cached_property
    def timed_as(self) -> dict[str, str]:
        """Maps each arm to the earlier arm of the same work: equal forwards per step, and adapters of equal shapes."""
        first: dict[str, str] = {}
        timed_as: dict[str, str] = {}
        for arm in self.given.arms:
            names = dict.fromkeys(filter(None, arm.plan.adapters))
            shapes = [{key: tensor.shape for key, tensor in self.given.states[name].items()} for name in names]
            work = artifacts.digest_of([arm.workload, shapes])
            if first.setdefault(work, arm.name) != arm.name:
                timed_as[arm.name] = first[work]
        return timed_as

    def measure(self, clock: Callable[[], float], on_round: Callable[[], None]) -> dict[int, dict[str, Latency]]:
        """The arms' times, for each of the `batches`.

        Args:
            clock: Seconds, after waiting for the device.
            on_round: Called after each round of timings.
        """
        latencies, repeats = {}, self.given.params.evaluation.latency_repeats
        for batch in self.batches:
            timed = latency.measure(self.works(batch), repeats, clock, on_round)
            latencies[batch] = {arm.name: timed[self.timed_as.get(arm.name, arm.name)] for arm in self.given.arms}
        return latencies

    def works(self, batch: int) -> dict[str, Work]:
        """The work of each timed arm, by its name."""
        sampler, prompts, seed = self.given.sampler, self.given.prompts, self.given.params.evaluation.seed
        seeds = range(seed, seed + batch)

        def encode(arm: Arm, n: int) -> Prompted:
            prompted = sampler.encode(arm, [prompts[(n + i) % len(prompts)] for i in range(batch)])
            _ = sampler.backbone.transformer  # with offloading, loads the transformer before the timed loop
            return prompted

        def work(arm: Arm) -> Work:
            return Work(
                prepare=lambda: sampler.weights.hold(arm.plan.adapters),
                encode=lambda n: encode(arm, n),
                loop=lambda prompted: sampler.denoise(arm, prompted, seeds),
                decode=sampler.decode,
            )

        return {arm.name: work(arm) for arm in self.given.arms if arm.name not in self.timed_as}


def time_arms(given: Inputs, file: Path, progress: Progress) -> None:
    """Times the arms and writes latency.json.

    Args:
        given: What the arms are made of.
        file: Where the times go.
        progress: Shows the progress.

    Raises:
        ValueError: As `Inputs.load` does.
    """
    timing, repeats = Timing(given), given.params.evaluation.latency_repeats
    backbone = given.sampler.backbone

    def clock() -> float:
        if backbone.device.type == "cuda":
            torch.cuda.synchronize(backbone.device)
        return time.perf_counter()

    with progress(total=len(timing.batches) * repeats, what="timing the arms", unit="round") as bar:
        latencies = timing.measure(clock, bar.update)
    content = {
        "arms": {arm.name: row(arm.name, latencies) for arm in given.arms},
        "latency_batches": timing.batches,
        "latency_repeats": repeats,
        "timed_as": timing.timed_as,
        "device": describe(backbone.device, backbone.dtype, given.params.runtime.offload),
        "teacher_digest": given.teacher_digest,
        "bundle_digest": given.bundle_digest,
    }
    artifacts.write_json(file, content)


def row(arm: str, latencies: Mapping[int, Mapping[str, Latency]]) -> dict[str, float]:
    """An arm of latency.json: ms for a batch, and the teacher's time over the arm's.

    Args:
        arm: Its name.
        latencies: By batch size, then arm.
    """
    found = {}
    for batch, by_arm in latencies.items():
        mine, theirs = by_arm[arm], by_arm[REFERENCE]
        found[f"latency_ms_batch{batch}"] = mine.total_ms
        found[f"loop_ms_batch{batch}"] = mine.loop_ms
        found[f"speedup_batch{batch}"] = theirs.total_ms / mine.total_ms
        found[f"loop_speedup_batch{batch}"] = theirs.loop_ms / mine.loop_ms
    return found


def describe(device: torch.device, dtype: torch.dtype, offload: bool = False) -> str:
    """The device, dtype and offloading of a timing, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, {str(dtype).removeprefix('torch.')}" + (", parts moved in and out" if offload else "")
