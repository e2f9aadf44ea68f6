"""The model of the page: one base in memory, one thread that draws with it, and the bundles that were chosen."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from pipeline import backbones
from pipeline.adapters import switching
from pipeline.backbones.teacher import Teacher
from pipeline.bundle.manifest import Bundle, Guidance, bundle_digest
from pipeline.demo import drawing, ways
from pipeline.demo.asking import Asked
from pipeline.demo.pictures import Drawn, Setting
from pipeline.demo.watching import watched
from pipeline.flow.sampling import StepPlan, fixed_plan
from pipeline.flow.schedule import base_levels
from pipeline.params import Params

if TYPE_CHECKING:  # at run time `backbones.load` imports it, without the warnings of its packages
    from pipeline.backbones.stock import StockBackbone

Progress = Generator[Drawn | None, None, Drawn]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one visitor draws with."""

    name: str
    """As the visitor named the bundle; "" = the teacher alone."""
    base: Teacher
    base_digest: str
    setting: Setting
    teacher: StepPlan
    bundle: Bundle | None = None
    digest: str = ""
    student: StepPlan | None = None

    @property
    def levels(self) -> tuple[float, ...]:
        """Noise levels of the student's steps, or a few of the teacher's."""
        plan, every = (self.student, 1) if self.student else (self.teacher, max(1, self.setting.teacher_steps // 8))
        return tuple(plan.sigmas.tolist()[:-1:every])


class Studio:
    """Draws for all visitors, one picture at a time: the adapters act on the one base in memory."""

    def __init__(self, teacher: str | None = None, device: str = "auto"):
        """
        Args:
            teacher: The folder of the base; None = the folder that a bundle names.
            device: As `backbones.load` takes it.
        """
        self._folder, self._device = teacher, device
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drawing")
        self._base: tuple[Teacher, str] | None = None  # what is in memory: the model and its digest
        self._backbone: StockBackbone | None = None
        self._adapters: switching.FusedAdapters | switching.LowRankAdapters | None = None
        self._held = ""  # digest of the bundle whose adapters are ready
        self._closing = Event()

    def close(self) -> None:
        """Stops all drawings, and waits for the one that runs."""
        self._closing.set()
        self._executor.shutdown(cancel_futures=True)

    def load(self, folder: Path, name: str) -> Choice:
        """Reads a bundle and loads its base, if that is not in memory yet.

        Raises:
            ValueError: The bundle is broken, or its base is missing, broken or another model.
            FileNotFoundError: The base lacks a file.
        """
        return self._executor.submit(self._open, Path(folder), name).result()

    def teacher_alone(self, params: Params) -> Choice:
        """The teacher of params.yaml, without a student; raises as `open` does."""
        return self._executor.submit(self._teacher_alone, params).result()

    def warm_up(self, choice: Choice) -> None:
        """Draws a picture that nobody sees, since the first one takes longer."""
        asked, never = Asked("a picture", 0), Event()
        if choice.bundle is None:
            progress = self.teacher(choice, asked, never, frames=False)
        else:
            progress = self.student(choice, ways.WHOLE, asked, never, frames=True)
        for _ in progress:
            pass

    def student(self, choice: Choice, way: str, asked: Asked, stop: Event, *, frames: bool) -> Progress:
        """Draws with the bundle's adapters, with frames at the choice's levels or without any; see `watched`."""
        bundle, plan = choice.bundle, choice.student
        assert bundle is not None and plan is not None
        chosen = ways.find(bundle, way).plan(plan)
        scale, wanted = choice.setting.guidance.student_true_cfg_scale, choice.levels if frames else ()

        def work(tell: Callable[[Drawn], None]) -> Drawn:
            backbone = self._ready(choice.base, choice.base_digest)
            select = self._hold(backbone, bundle, choice.digest)
            try:
                return drawing.draw(
                    backbone, choice.setting, chosen, scale, select, asked.prompt, asked.seed, wanted, tell
                )
            finally:
                select(None)

        return watched(self._executor, work, lambda: stop.is_set() or self._closing.is_set())

    def teacher(self, choice: Choice, asked: Asked, stop: Event, *, frames: bool) -> Progress:
        """Draws with the bare base in all its steps; else as `student`."""
        scale, wanted = choice.setting.guidance.teacher_true_cfg_scale, choice.levels if frames else ()

        def work(tell: Callable[[Drawn], None]) -> Drawn:
            backbone = self._ready(choice.base, choice.base_digest)
            return drawing.draw(
                backbone, choice.setting, choice.teacher, scale, _bare, asked.prompt, asked.seed, wanted, tell
            )

        return watched(self._executor, work, lambda: stop.is_set() or self._closing.is_set())

    def _open(self, folder: Path, name: str) -> Choice:
        bundle = Bundle.load(folder)
        bundle.check_base(self._folder)
        base = bundle.base(self._folder)
        backbone = self._ready(base, bundle.base_digest)
        setting = Setting(
            height=bundle.height,
            width=bundle.width,
            max_sequence_length=bundle.max_sequence_length,
            teacher_steps=bundle.teacher_steps,
            guidance=bundle.guidance,
        )
        digest = bundle_digest(folder)
        self._hold(backbone, bundle, digest)
        return Choice(
            name=name,
            base=base,
            base_digest=bundle.base_digest,
            setting=setting,
            teacher=_all_steps(backbone, setting),
            bundle=bundle,
            digest=digest,
            student=bundle.plan(backbone),
        )

    def _teacher_alone(self, params: Params) -> Choice:
        own = params.teacher
        base = own.base if self._folder is None else Teacher.at(self._folder)
        guidance = Guidance(
            teacher_true_cfg_scale=own.true_cfg_scale,
            student_true_cfg_scale=params.student.true_cfg_scale,
            guidance_scale=own.guidance_scale,
            negative_prompt=own.negative_prompt,
        )
        setting = Setting(
            height=own.height,
            width=own.width,
            max_sequence_length=own.max_sequence_length,
            teacher_steps=own.steps,
            guidance=guidance,
        )
        backbones.family(base.path)
        digest = backbones.digest(base.path, base.loras)
        every = _all_steps(self._ready(base, digest), setting)
        return Choice(name="", base=base, base_digest=digest, setting=setting, teacher=every)

    def _ready(self, base: Teacher, digest: str) -> StockBackbone:
        """The base in memory; another one takes its place, since two may not fit."""
        if self._backbone is None or (base, digest) != self._base:
            self._backbone, self._base, self._adapters, self._held = None, None, None, ""
            self._backbone = backbones.load(base, self._device)
            self._base = base, digest
        return self._backbone

    def _hold(self, backbone: StockBackbone, bundle: Bundle, digest: str) -> Callable[[str | None], None]:
        """The bundle's adapters, ready on the base; None of them acts yet."""
        if self._adapters is None or digest != self._held:
            if self._adapters is not None:
                self._adapters.close()
            self._adapters, self._held = None, ""
            self._adapters = switching.prepare(backbone.transformer, bundle.states(), home=backbone.home)
            self._held = digest
        self._adapters.select(None)
        return self._adapters.select


def _all_steps(backbone: StockBackbone, setting: Setting) -> StepPlan:
    schedule = backbone.schedule(setting.height, setting.width)
    return fixed_plan(schedule.sigmas(base_levels(setting.teacher_steps)))


def _bare(adapter: str | None) -> None:
    """No adapter acts on the base between two pictures."""


def phases(choice: Choice) -> Sequence[str]:
    """The phase of each step of the student; () for the teacher alone."""
    return tuple(phase.name for phase in choice.bundle.phases for _ in phase.steps) if choice.bundle else ()
