"""The arms of one evaluation, from its inputs to its tables and its report."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from pipeline import artifacts, flow, schedule
from pipeline.evaluation import arms, latency, measure, report, results, samples
from pipeline.evaluation.arms import PRODUCT, REFERENCE, Arm
from pipeline.evaluation.inputs import Inputs
from pipeline.evaluation.latency import Latency, Work
from pipeline.evaluation.measure import Measured
from pipeline.evaluation.pictures import Row, grid
from pipeline.evaluation.prompts import Exam
from pipeline.evaluation.samples import Prompted, Sampler, Store
from pipeline.evaluation.weights import ArmWeights
from pipeline.params import Params

LATENCY_BATCHES = (1, 16)
SIDE_BY_SIDE = (REFERENCE, "base_guided", "base_unguided", "base_guided_equal_cost", PRODUCT)
FAILURE_ARMS = (REFERENCE, "base_guided", PRODUCT)
MAX_FAILURES = 12  # failures of the student that the report shows
PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy")
HIDDEN_SECTIONS = ("register", "runtime")  # parameters that change nothing the report shows
STAGE_SECTIONS = (
    "trajectories",
    "partition",
    "training",
    "train_slow",
    "train_fast",
    "train_controls",
    "official",
    "student",
)


class Comparison:
    """The arms on one exam: makes and measures images, takes times, and puts both into tables and a page.

    Attributes:
        arms: What is compared.
        draws: What every arm makes.
    """

    def __init__(self, inputs: Inputs, exam: Exam, params: Params) -> None:
        """
        Args:
            inputs: The teacher and the adapters.
            exam: Prompts and checker.
            params: All parameters.
        """
        teacher, settings = params.teacher, params.evaluation
        self.inputs, self.exam, self.params = inputs, exam, params
        self.arms = arms.build(
            arms.Conditions(
                schedule=inputs.backbone.schedule(teacher.height, teacher.width),
                teacher_steps=teacher.steps,
                student=inputs.bundle.plan(inputs.backbone),
                teacher_scale=teacher.true_cfg_scale,
                student_scale=inputs.bundle.guidance.student_true_cfg_scale,
                rivals=inputs.controls,
                swaps=settings.swaps,
            )
        )
        self.draws = measure.draws(
            exam.prompts, settings.seed, settings.batch, settings.diversity_prompts, settings.diversity_seeds
        )
        self.sampler = Sampler(
            inputs.backbone,
            ArmWeights(inputs.backbone.transformer, inputs.states, inputs.backbone.home),
            teacher.height,
            teacher.width,
            teacher.max_sequence_length,
            teacher.guidance_scale,
            teacher.negative_prompt,
        )
        key = artifacts.digest_of([inputs.origin, inputs.adapter_digests])
        self.store = Store(
            self.sampler.images,
            inputs.origin,
            inputs.adapter_digests,
            lasting=artifacts.dvc_root() / ".glance" / "cache" / "evaluation" / artifacts.digest_of(inputs.origin),
            passing=artifacts.checkpoint_dir("evaluate", key),
        )

    @property
    def batches(self) -> list[int]:
        """The batch sizes that are timed: those of LATENCY_BATCHES up to evaluation.batch, which fits into memory."""
        return [batch for batch in LATENCY_BATCHES if batch <= self.params.evaluation.batch]

    @property
    def forwards(self) -> int:
        """Forwards, counted per image, of all arms together."""
        return self.draws.images * sum(arm.nfe for arm in self.arms)

    def measure(self, on_shard: Callable[[Arm, int], None]) -> dict[str, Measured]:
        """Makes the images and measures them; continues where a killed evaluation stopped."""
        return measure.measure(self.arms, self.store.images, self.exam.judge, self.draws, on_shard)

    def time(self, clock: Callable[[], float], on_round: Callable[[], None]) -> dict[int, dict[str, Latency]]:
        """Takes the arms' times, for each of the `batches`; always anew, and once for arms of equal work."""
        latencies = {}
        for batch in self.batches:
            timed = latency.measure(self._works(batch), self.params.evaluation.latency_repeats, clock, on_round)
            latencies[batch] = {arm.name: timed[self.timed_as.get(arm.name, arm.name)] for arm in self.arms}
        return latencies

    @property
    def timed_as(self) -> dict[str, str]:
        """Arms that do an earlier one's work, step by step and with adapters of its shapes, to the name of that one."""
        first, timed_as = {}, {}
        for arm in self.arms:
            names = dict.fromkeys(filter(None, arm.plan.adapters))
            shapes = [{key: tensor.shape for key, tensor in self.inputs.states[name].items()} for name in names]
            work = artifacts.digest_of([arm.workload, shapes])
            if first.setdefault(work, arm.name) != arm.name:
                timed_as[arm.name] = first[work]
        return timed_as

    def _works(self, batch: int) -> dict[str, Work]:
        sampler, prompts = self.sampler, self.exam.prompts
        noise = sampler.noise(range(self.params.evaluation.seed, self.params.evaluation.seed + batch))

        def encode(arm: Arm, n: int) -> Prompted:
            prompted = sampler.encode(arm, [prompts[(n + i) % len(prompts)] for i in range(batch)])
            _ = sampler.backbone.transformer  # where parts are moved in and out, that is no time of the loop
            return prompted

        def work(arm: Arm) -> Work:
            return Work(
                prepare=lambda: sampler.weights.hold(arm.plan.adapters),
                encode=lambda n: encode(arm, n),
                loop=lambda prompted: sampler.denoise(arm, prompted, noise),
                decode=sampler.decode,
            )

        return {arm.name: work(arm) for arm in self.arms if arm.name not in self.timed_as}

    def metrics(self, measured: Mapping[str, Measured], latencies: Mapping[int, Mapping[str, Latency]]) -> dict:
        """The content of metrics.json, from what was measured and timed."""
        settings, tasks = self.params.evaluation, self.exam.tasks
        by_task = {arm.name: results.task_scores(measured[arm.name].passed, tasks) for arm in self.arms}
        return {
            "arms": results.arm_rows(self.arms, measured, latencies, settings.bootstrap, settings.seed),
            "teacher_tasks": by_task[REFERENCE],
            "tasks": by_task,
            "comparisons": results.comparisons(measured, settings.bootstrap, settings.seed),
            "agreement": results.agreement(measured[REFERENCE].passed, measured[PRODUCT].passed),
            "prompts": len(self.exam.prompts),
            "checker_truth": self.exam.truth,
            "unscored": self.exam.unscored,
            "latency_batches": list(latencies),
            "latency_repeats": settings.latency_repeats,
            "timed_as": self.timed_as,
            "device": describe(self.inputs.backbone.device, self.inputs.backbone.dtype, self.params.runtime.offload),
            "teacher_digest": self.inputs.teacher_digest,
            "bundle_digest": self.inputs.bundle_digest,
        }

    def rows(self, names: tuple[str, ...], indices: list[int], measured: Mapping[str, Measured]) -> list[Row]:
        """The images of single prompts across arms."""
        by_name = {arm.name: arm for arm in self.arms}
        columns = [samples.pick(self.store.images, by_name[name], self.draws.prompts, indices) for name in names]
        return [
            Row(
                self.exam.prompts[index],
                [column[i] for column in columns],
                None if self.exam.judge is None else [bool(measured[name].passed[index]) for name in names],
            )
            for i, index in enumerate(indices)
        ]

    def content(self, metrics: dict, measured: Mapping[str, Measured]) -> report.Content:
        """Everything the report shows."""
        inputs, prompts = self.inputs, self.exam.prompts
        count = min(self.params.evaluation.grid_prompts, len(prompts))
        shown = np.linspace(0, len(prompts) - 1, count).round().astype(int).tolist()
        failed = []
        if self.exam.judge is not None:
            failed = np.flatnonzero(measured[REFERENCE].passed & ~measured[PRODUCT].passed)[:MAX_FAILURES].tolist()
        titles = {arm.name: f"{arm.title}\n{arm.nfe} forwards" for arm in self.arms}
        hidden = HIDDEN_SECTIONS if inputs.trained_here else (*HIDDEN_SECTIONS, *STAGE_SECTIONS)
        sections = {name: value for name, value in asdict(self.params).items() if name not in hidden}
        sigmas = inputs.backbone.schedule(self.params.teacher.height, self.params.teacher.width).sigmas(
            schedule.base_levels(self.params.teacher.steps)
        )
        return report.Content(
            metrics=metrics,
            arms=self.arms,
            titles=[titles[name] for name in SIDE_BY_SIDE],
            side_by_side=self.rows(SIDE_BY_SIDE, shown, measured),
            failure_titles=[titles[name] for name in FAILURE_ARMS],
            failures=self.rows(FAILURE_ARMS, failed, measured),
            histories=inputs.histories,
            trained_here=inputs.trained_here,
            snr=flow.snr(sigmas[:-1]).tolist(),
            slow_steps=inputs.bundle.phases["slow"].steps,
            fast_steps=inputs.bundle.phases["fast"].steps,
            provenance={
                "Teacher": f"{self.params.teacher.path}, {inputs.teacher_digest}",
                "Bundle": inputs.bundle_digest,
                "Path": inputs.bundle.path,
                **{f"Adapter {name}": digest for name, digest in inputs.adapter_digests.items()},
                "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
            },
            params=sections,
        )

    def forget(self) -> None:
        """Removes the images of adapters, which no other evaluation can use; those of the bare backbone stay."""
        shutil.rmtree(self.store.passing, ignore_errors=True)


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def describe(device: torch.device, dtype: torch.dtype, offload: bool = False) -> str:
    """What times were taken on, in words."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, {str(dtype).removeprefix('torch.')}" + (", parts moved in and out" if offload else "")


def write(folder: Path, comparison: Comparison, metrics: dict, measured: Mapping[str, Measured]) -> None:
    """Writes the tables, the grid and the report, each file whole; metrics.json comes last.

    Args:
        folder: artifacts/evaluation, or a command's own.
        comparison: What was compared.
        metrics: The content of metrics.json.
        measured: By arm.
    """
    content = comparison.content(metrics, measured)
    page = report.page(content)
    exam, seed = comparison.exam, comparison.params.evaluation.seed
    frames = {
        "arms.csv": results.arms_frame(metrics["arms"]),
        "quality_over_nfe.csv": results.quality_frame(metrics["arms"]),
        "prompts.csv": results.prompts_frame(measured, exam.prompts, exam.tasks, seed),
    }
    for name, frame in frames.items():
        with artifacts.atomic_file(folder / name) as partial:
            frame.to_csv(partial, index=False)
    with artifacts.atomic_file(folder / "grid.png") as partial:
        grid(content.titles, content.side_by_side).save(partial, "PNG", optimize=True)
    with artifacts.atomic_file(folder / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    artifacts.write_json(folder / "metrics.json", metrics)
