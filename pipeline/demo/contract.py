"""The facts of a bundle: what it was made for, how it runs, and how good it is known to be."""

from collections.abc import Iterator

from pipeline.demo.measured import Retention
from pipeline.demo.studio import Choice
from pipeline.flow.guidance import forwards

UNKNOWN = "not measured here; `glance evaluate` measures it"


def rows(choice: Choice, retention: Retention | None) -> Iterator[tuple[str, str]]:
    """The facts as pairs of a name and a text, in the order of the page."""
    setting, guidance, bundle = choice.setting, choice.setting.guidance, choice.bundle
    yield "base model", f"{choice.base.path} ({choice.base.dtype})"
    yield "base digest", choice.base_digest
    yield "picture", f"{setting.width} x {setting.height} pixels, {setting.max_sequence_length} text tokens"
    yield "teacher", _run(setting.teacher_steps, guidance.teacher_true_cfg_scale)
    if bundle is None or choice.student is None:
        return
    yield "student", _run(len(bundle.steps), guidance.student_true_cfg_scale)
    yield "embedded guidance", f"{guidance.guidance_scale:g}"
    for phase in bundle.phases:
        levels = ", ".join(f"{sigma:.4f}" for sigma in phase.sigmas[:-1])
        yield f"levels of {phase.name}", f"{levels} ({len(phase.steps)} steps)"
    for early, late in zip(bundle.phases, bundle.phases[1:], strict=False):
        yield "handoff", f"sigma {late.sigmas[0]:.4f}, base level u {late.u[0]:.4f}: {early.name} to {late.name}"
    yield "sampling path, solver", f"{bundle.path}, {bundle.solver}"
    yield "rank", str(bundle.rank)
    yield "licence of the base", bundle.base_license
    yield "bundle digest", choice.digest
    yield "retention", _quality(retention)


def _run(steps: int, scale: float) -> str:
    total = steps * forwards(scale)
    guided = f"true CFG scale {scale:g}" if forwards(scale) == 2 else "no true CFG"
    return f"{steps} steps, {guided}, {total} forwards"


def _quality(found: Retention | None) -> str:
    if found is None:
        return UNKNOWN
    between = "" if found.low is None or found.high is None else f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{100 * found.value:.1f} %{between} of the teacher's score ({found.source})"
