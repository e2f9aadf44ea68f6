"""What a LoRA file holds: layout, keys, ranks, strength, numbers, and the base that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.adapters import lora_files, lora_names, lora_strength, lora_survey
from pipeline.adapters.lora_survey import Survey
from pipeline.artifacts import read_json
from pipeline.bundle.checkup import likeness
from pipeline.bundle.checkup.finding import FAIL, NOTE, OK, Finding

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone

SHOWN = 3  # names of tensors in one finding
BASE_KEYS = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name")
"""Texts of a header that name a base, as far as trainers write them."""
PLACES = {
    "nowhere": "no alpha, so alpha = rank",
    "tensors": "alpha in tensors of the file",
    "header": "alpha in the header",
    "folder": f"alpha in {lora_strength.CONFIG}",
}


def findings(file: Path, backbone: StockBackbone, layers: Mapping[str, tuple[int, int]]) -> Iterator[Finding]:
    """The findings on one file.

    Args:
        file: A .safetensors file, or a folder that peft saved.
        backbone: The base; its weights need not be loaded.
        layers: The shapes of its linear layers.
    """
    name = file.name
    try:
        survey = lora_survey.survey(file, lora_names.known(layers, backbone.lora_names), layers)
    except ValueError as error:
        yield Finding("file", FAIL, str(error), name)
        return
    family, whole = likeness.nearest(file) if survey.bound < survey.keys else (None, survey)
    elsewhere = family != backbone.family and whole.bound > survey.bound
    for one in (
        _layout(whole if elsewhere else survey),
        _keys(survey, backbone, len(layers), family, whole),
        _rank(survey),
        _strength(survey),
        _numbers(survey),
        _named(survey, backbone),
        _reading(file, backbone),
    ):
        yield Finding(one.name, one.level, one.text, name)


def _layout(survey: Survey) -> Finding:
    found = survey.layout
    if found is None:
        return Finding("layout", NOTE, "none of docs/lora_files.md")
    return Finding("layout", OK, f"{found.name}, as written by {found.writers}")


def _keys(survey: Survey, backbone: StockBackbone, total: int, family: str | None, whole: Survey) -> Finding:
    """How many keys the base has a place for; `family` has a place for most of them, as `whole` counts."""
    text = (
        f"{survey.bound} of {survey.keys} keys bind to {survey.layers} of the {total} linear layers of {backbone.path}"
    )
    if survey.keys and not survey.unbound:
        return Finding("keys", OK, text)
    if not survey.keys:
        return Finding("keys", FAIL, f"{text}, since the file is empty")
    elsewhere = family is not None and family != backbone.family and whole.bound > survey.bound
    foreign = likeness.foreign(survey) if family is None else None
    if elsewhere:
        text += f"; {whole.bound} are names of the family {family}"
    elif family is not None and whole.bound > survey.bound:
        text += f"; {whole.bound} are names of a larger model of the family {family}"
    elif foreign:
        text += f"; the names look like {foreign}"
    lost = ", ".join(survey.unbound[:SHOWN]) + (", ..." if len(survey.unbound) > SHOWN else "")
    level = FAIL if elsewhere or not survey.bound else NOTE
    return Finding("keys", level, f"{text}; without a place: {lost}")


def _rank(survey: Survey) -> Finding:
    if not survey.ranks:
        return Finding("rank", NOTE, "none, since the file holds no pair of A and B")
    low, high = survey.ranks[0], survey.ranks[-1]
    return Finding("rank", OK, f"{low} in all layers" if low == high else f"{low} to {high}")


def _strength(survey: Survey) -> Finding:
    place = PLACES[survey.alpha]
    if not survey.scales:
        return Finding("strength", NOTE, f"{place}; the scale alpha / rank is unclear")
    low, high = survey.scales[0], survey.scales[-1]
    return Finding("strength", OK, f"{place}; the scale is {_span(low, high)}")


def _span(low: float, high: float) -> str:
    return f"{low:g} in all layers" if low == high else f"{low:g} to {high:g}"


def _numbers(survey: Survey) -> Finding:
    kinds = ", ".join(sorted(survey.dtypes)) or "no numbers"
    if survey.broken:
        return Finding("numbers", FAIL, f"{kinds}; NaN or infinity in {', '.join(survey.broken[:SHOWN])}")
    if not survey.pairs:
        return Finding("numbers", OK, f"{kinds}, all finite" if survey.dtypes else kinds)
    if survey.idle == survey.pairs:
        return Finding("numbers", FAIL, f"{kinds}; the file changes nothing: A or B is 0 in every layer")
    if survey.idle:
        return Finding("numbers", NOTE, f"{kinds}, all finite; {survey.idle} of {survey.pairs} layers do not change")
    return Finding("numbers", OK, f"{kinds}, all finite, and every layer changes")


def _named(survey: Survey, backbone: StockBackbone) -> Finding:
    """The base by the names that other tools give it."""
    said = {key: survey.header[key] for key in BASE_KEYS if survey.header.get(key)}
    folder = _of_folder(survey.file.parent)
    if folder:
        said[lora_strength.CONFIG] = folder
    if not said:
        return Finding("base", NOTE, "the file names none")
    text = "the file names " + ", ".join(f"{value} ({key})" for key, value in said.items())
    wrong = [key for key, name in backbone.known_as.items() if key in said and _base(said[key]) != _base(name)]
    if wrong:
        names = ", ".join(backbone.known_as[key] for key in wrong)
        return Finding("base", NOTE, f"{text}; {backbone.path} would be {names}")
    return Finding("base", OK, text)


def _base(name: str) -> str:
    """A name of a base without its case, its marks and the kind of adapter."""
    return "".join(filter(str.isalnum, name.lower().removesuffix("/lora")))


def _of_folder(folder: Path) -> str | None:
    """The base that peft's configuration beside a file names."""
    file = folder / lora_strength.CONFIG
    try:
        content = read_json(file) if file.is_file() else None
    except ValueError:
        return None
    named = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    return named if isinstance(named, str) and named else None


def _reading(file: Path, backbone: StockBackbone) -> Finding:
    """Whether the commands of this project take the file."""
    try:
        lora_files.read(file, backbone)
    except ValueError as error:
        return Finding("use", FAIL, str(error))
    return Finding("use", OK, f"every tensor is part of the change of {backbone.path}")
