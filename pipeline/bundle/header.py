"""The contract in the header of an adapter's file, beside the keys that other tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.artifacts import save_safetensors
from pipeline.bundle import schemas
from pipeline.bundle.manifest import Bundle

if TYPE_CHECKING:
    from pipeline.backbones.stock import StockBackbone

KEY = "glance"
"""The contract as JSON, with the name of the file's phase under `phase`."""
SPEC = "1.0.1"  # of Stability AI's ModelSpec, whose keys start with "modelspec."


def texts(bundle: Bundle, phase: str, backbone: StockBackbone) -> dict[str, str]:
    """The header's texts for the adapter of a phase. They hold no date, so equal bundles give equal bytes.

    Args:
        bundle: The contract.
        phase: The name of the phase that the file is the adapter of.
        backbone: The base, whose family says what other tools call the model; its weights need not be loaded.

    Raises:
        ValueError: The schema refuses the contract.
    """
    number = [one.name for one in bundle.phases].index(phase) + 1
    own = bundle.phases[number - 1]
    title = (
        f"{Path(bundle.base_model).name}: {phase}, part {number} of {len(bundle.phases)}, "
        f"{len(own.steps)} of {len(bundle.steps)} steps from sigma {own.sigmas[0]:.4f}"
    )
    called = {
        "modelspec.architecture": f"{bundle.family}/lora",
        "ss_base_model_version": bundle.family,
        "ss_network_module": "networks.lora",
    }
    return {
        "format": "pt",
        KEY: carried(bundle, phase),
        "modelspec.sai_model_spec": SPEC,
        "modelspec.title": title,
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": f"{bundle.width}x{bundle.height}",
        "ss_network_dim": str(bundle.rank),
        "ss_network_alpha": str(bundle.rank),
        **called,
        **backbone.known_as,
    }


def renew(folder: Path, bundle: Bundle) -> None:
    """Writes another contract into a bundle's folder: into its manifest and the header of each adapter's file.

    Args:
        folder: The folder, whose adapters stay as they are.
        bundle: The contract.

    Raises:
        ValueError: The schema refuses the contract.
    """
    bundle.write_manifest(folder)
    for phase in bundle.phases:
        file = folder / phase.file
        with safe_open(file, framework="pt") as opened:
            texts = opened.metadata() or {}
        save_safetensors(file, load_file(file), texts | {KEY: carried(bundle, phase.name)})


def carried(bundle: Bundle, phase: str) -> str:
    """The value of `KEY` for the file of a phase: the contract and the phase's name, as JSON.

    Raises:
        ValueError: The schema refuses the contract.
    """
    contract = {**bundle.to_json(), "phase": phase}
    schemas.check(contract, KEY)
    return json.dumps(contract, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read(header: Mapping[str, str], file: Path) -> tuple[Bundle, str] | None:
    """The contract in a file's header, and the phase that the file is; None without a contract.

    Args:
        header: The texts of the header.
        file: The file, for messages; its folder is the bundle's.

    Raises:
        ValueError: The value is no contract, or its phase is none of the contract's.
    """
    if KEY not in header:
        return None
    source = f"{file}: {KEY} in the header"
    try:
        content = json.loads(header[KEY])
    except ValueError as error:
        raise ValueError(f"{source} is not JSON ({error})") from error
    bundle = Bundle.from_json(content, file.parent, source)
    names = [phase.name for phase in bundle.phases]
    if content.get("phase") not in names:
        raise ValueError(f"{source}: phase must be one of {', '.join(names)}, got {content.get('phase')!r}")
    return bundle, content["phase"]
