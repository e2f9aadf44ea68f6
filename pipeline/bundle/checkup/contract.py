"""What a contract says, and whether it agrees with its base and its manifest."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import backbones
from pipeline.adapters import lora_files
from pipeline.bundle import header
from pipeline.bundle.checkup.finding import FAIL, NOTE, OK, Finding
from pipeline.bundle.manifest import MANIFEST, Bundle


def of_path(bundle: Bundle, base: Path, file: str | None = None) -> Iterator[Finding]:
    """The findings on a contract: digest of the base, phases, levels, guidance, retention and licence."""
    yield replace(_digest(bundle, base), file=file)
    phases = ", ".join(f"{one.name} {len(one.steps)} steps from sigma {one.sigmas[0]:.4f}" for one in bundle.phases)
    size = f"{bundle.width} x {bundle.height}"
    guidance = bundle.guidance
    yield Finding("phases", OK, phases, file)
    yield Finding("levels", OK, f"u {_listed(bundle.u)}; sigma {_listed(bundle.sigmas)} at {size}", file)
    yield Finding(
        "guidance",
        OK,
        f"true CFG {guidance.student_true_cfg_scale:g}, embedded guidance {guidance.guidance_scale:g}, "
        f"solver {bundle.solver}, path {bundle.path}",
        file,
    )
    yield Finding("licence", OK, f"{bundle.license}; of the base: {bundle.base_license}", file)
    measured = bundle.retention
    if measured is None:
        yield Finding("retention", NOTE, "not measured", file)
    else:
        yield Finding(
            "retention",
            OK,
            f"{100 * measured.value:.1f} % of the teacher's score {measured.score} "
            f"({100 * measured.low:.1f} to {100 * measured.high:.1f} %) on {measured.prompts} prompts, "
            f"in {measured.student_forwards} forwards instead of {measured.teacher_forwards}",
            file,
        )


def of_file(file: Path, base: Path, bundle: Bundle | None) -> Iterator[Finding]:
    """The findings on the contract in a file's header, beside the manifest of the file's bundle if it has one."""
    try:
        found = header.read(lora_files.header(file), file)
    except ValueError as error:
        yield Finding("contract", FAIL, str(error), file.name)
        return
    if found is None:
        text = "none in the header"
        if bundle is None:
            text += ": `glance import` takes the steps from --rule or --levels"
        yield Finding("contract", NOTE, text, file.name)
        return
    carried, phase = found
    if bundle is None:
        names = ", ".join(one.name for one in carried.phases)
        yield Finding("contract", OK, f"the file is the phase {phase} of {names}", file.name)
        yield from of_path(carried, base, file.name)
        return
    own = next(one.name for one in bundle.phases if one.file == file.name)
    differing = [key for key, value in bundle.to_json().items() if carried.to_json()[key] != value]
    if phase != own:
        yield Finding("contract", FAIL, f"the file is the phase {phase}, and {MANIFEST} says {own}", file.name)
    elif differing:
        text = f"the header and {MANIFEST} differ in {', '.join(differing)}; {MANIFEST} counts"
        yield Finding("contract", NOTE, text, file.name)
    else:
        yield Finding("contract", OK, f"the file is the phase {phase}, and agrees with {MANIFEST}", file.name)


def _digest(bundle: Bundle, base: Path) -> Finding:
    try:
        digest = backbones.digest(base, bundle.loras)
    except (ValueError, OSError) as error:
        return Finding("digest", FAIL, f"the digest of {base} cannot be computed: {error}")
    if digest != bundle.base_digest:
        return Finding(
            "digest", FAIL, f"the contract is for another model than {base}: {bundle.base_digest}, not {digest}"
        )
    return Finding("digest", OK, f"the contract is for {bundle.base_model}, and {base} has its digest")


def _listed(levels: Sequence[float]) -> str:
    return " ".join(f"{level:.4g}" for level in levels)
