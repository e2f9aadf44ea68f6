"""Runs tests/scorers in a process of its own: the packages of the extra `benchmarks` lie beside the environment.

torchvision changes what transformers imports, and its build must fit torch's. So `make test` installs the extra's
packages into a folder of their own, which only this process sees.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BESIDE = Path(sys.prefix) / "benchmarks"


@pytest.mark.slow
def test_the_scorers_on_tiny_models():
    if not BESIDE.is_dir() and find_spec("torchvision") is None:
        pytest.skip("make test installs the packages of the extra `benchmarks`")
    paths = [str(ROOT), str(BESIDE), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "scorers")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
