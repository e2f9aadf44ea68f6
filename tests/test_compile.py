"""A compiled transformer: the handoff compiles nothing anew, and the numbers are those of the plain one."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pipeline import backbones
from pipeline.adapters import switching
from tests.test_adapters import output, random_state
from tests.tiny import make_tiny_flux

pytestmark = pytest.mark.slow  # the compiler takes a minute


@pytest.fixture
def backbone(tmp_path):
    torch._dynamo.reset()
    yield backbones.load(make_tiny_flux(tmp_path / "teacher", guidance_embeds=True), "cpu", ("transformer",))
    torch._dynamo.reset()


def run(backbone, states, fused, after=lambda: None):
    """The output with each adapter in turn; `after` is called after each."""
    with switching.acting(backbone.transformer, states, fused) as select:
        for name in ("slow", "fast", "slow"):
            select(name)
            yield output(backbone)
            after()


@pytest.mark.parametrize("fused", [True, False])
def test_a_handoff_does_not_compile_again(backbone, monkeypatch, fused):
    states = {"slow": random_state(backbone, "all", 1), "fast": random_state(backbone, "all", 2)}
    expected = list(run(backbone, states, fused))
    counter, compiled = CompileCounter(), []
    repeated = type(backbone.transformer).compile_repeated_blocks
    monkeypatch.setattr(
        type(backbone.transformer), "compile_repeated_blocks", lambda self: repeated(self, backend=counter)
    )
    backbone.compile()
    made = list(run(backbone, states, fused, lambda: compiled.append(counter.frame_count)))
    assert compiled == [2, 2, 2], "one graph for each kind of block"
    for ours, plain in zip(made, expected, strict=True):
        torch.testing.assert_close(ours, plain)
    assert not torch.allclose(made[0], made[1], rtol=1e-2)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_code_follows_the_handoff(backbone):
    states = {"slow": random_state(backbone, "all", 1), "fast": random_state(backbone, "attention", 2)}
    expected = list(run(backbone, states, fused=True))
    backbone.compile()
    for ours, plain in zip(run(backbone, states, fused=True), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
