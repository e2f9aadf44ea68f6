"""[edge] Reads one section of the teacher's params.yaml."""

from pathlib import Path

from ruamel.yaml import YAML


def section(name: str, path: Path = Path("params.yaml")) -> dict:
    """A section as plain values; all values come from the file, there are no defaults.

    Raises:
        ValueError: The section is missing.
    """
    params = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    if name not in params:
        raise ValueError(f"{path} must have a section {name!r}, got {sorted(params)}")
    return params[name]
