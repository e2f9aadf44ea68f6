"""Lets torchvision be imported beside a torch of another build: these tests call none of its compiled operators."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch


def _without_operators() -> torch.library.Library | None:
    """Declares the operators that torchvision's Python code describes, unless its compiled library loads.

    PyPI's torchvision is built for the CUDA build of torch. Beside a CPU build its library does not load, and the
    import then fails at the description of operators that nobody declared.
    """
    package = Path(find_spec("torchvision").origin).parent
    try:
        for library in package.glob("_C*.so"):
            torch.ops.load_library(library)
        return None
    except OSError:
        described = (package / "_meta_registrations.py").read_text(encoding="utf-8")
        declared = torch.library.Library("torchvision", "DEF")
        for name in sorted(set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', described))):
            declared.define(f"{name}(...) -> ...")
        return declared


LIBRARY = _without_operators()  # a library that is let go takes its declarations with it
