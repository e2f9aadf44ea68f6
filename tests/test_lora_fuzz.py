"""Damaged, doubled and changed LoRA files: the change that the file means, or one sentence; never anything else.

`GLANCE_FUZZ=2000 pytest tests/test_lora_fuzz.py` tries so many files.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline import adapters, backbones
from pipeline.adapters import lora_files
from tests.lora_layouts import CASES, LAYOUTS, SWAPPED, build
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

EXAMPLES = int(os.environ.get("GLANCE_FUZZ", "60"))
MAKERS = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}
FLOATS = [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    loaded = {family: backbones.load(make(folder / family), "cpu", ()) for family, make in MAKERS.items()}
    return {family: (one, adapters.linear_shapes(one.skeleton())) for family, one in loaded.items()}


@dataclass
class Subject:
    """A file under change, with what is known of it."""

    tensors: dict
    pairs: dict
    """(A's key, B's key, alpha's key or None) -> the layers and whether the halves are swapped."""
    header: dict | None = None
    doomed: str = ""
    """Why it must be refused, as far as that does not follow from the tensors of the pairs."""
    done: list = field(default_factory=list)


def subject(draw, layout, shapes, family):
    row = LAYOUTS[layout]
    made = build(layout, family, shapes)
    names = list(made.names)
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    layers_of = row.names[family] if row.names else {name: [name] for name in names}
    tensors, pairs = {}, {}
    for name in chosen:
        own = made.names[name]
        keys = (*(f"{own}.{half}" for half in row.halves), f"{own}.alpha")
        tensors |= {key: made.tensors[key] for key in keys if key in made.tensors}
        alpha = keys[2] if keys[2] in made.tensors else None
        pairs[keys[0], keys[1], alpha] = (layers_of[name], family == "flux" and name == SWAPPED)
    return Subject(tensors, pairs)


def pick(draw, file, which=(0, 1)):
    """A key of a pair that is still there: of A (0), B (1) or alpha (2)."""
    keys = [pair[i] for pair in file.pairs for i in which if pair[i] in file.tensors]
    return draw(st.sampled_from(keys)) if keys else None


def unpair(file, key, new=None):
    """Forgets or renames an alpha's key in the pairs."""
    file.pairs = {
        (a, b, new if alpha == key and key is not None else alpha): value for (a, b, alpha), value in file.pairs.items()
    }


def rename(draw, file):
    key = pick(draw, file, (0, 1, 2))
    spot, text = draw(st.integers(0, len(key))), draw(st.sampled_from(["x", "_", "0", "lora", "weight."]))
    file.tensors[key[:spot] + text + key[spot:]] = file.tensors.pop(key)
    file.doomed = f"{key} is renamed"


def drop(draw, file):
    key = pick(draw, file, (0, 1, 2))
    del file.tensors[key]
    if key.endswith(".alpha"):
        unpair(file, key)
    elif len([pair for pair in file.pairs if key in pair]) == 1:
        pair = next(pair for pair in file.pairs if key in pair)
        if any(other in file.tensors for other in pair):
            file.doomed = f"{key} is dropped"
        else:
            del file.pairs[pair]


def double(draw, file):
    key = pick(draw, file)
    for half, other in (("lora_A", "lora_down"), ("lora_down", "lora_A"), ("lora_B", "lora_up"), ("lora_up", "lora_B")):
        if half in key:
            file.tensors[key.replace(half, other)] = file.tensors[key].clone()
            file.doomed = f"{key} is there twice"
            return


def retype(draw, file):
    key = pick(draw, file)
    file.tensors[key] = file.tensors[key].to(draw(st.sampled_from([*FLOATS, torch.int8, torch.int32])))


def reshape(draw, file):
    key = pick(draw, file)
    tensor = file.tensors[key]
    if tensor.dim() < 2:
        return
    ways = [tensor.mT, tensor[:1], tensor[:0], tensor[..., None], tensor[..., None, None], tensor.reshape(-1)]
    file.tensors[key] = draw(st.sampled_from(ways)).clone(memory_format=torch.contiguous_format)


def rescale(draw, file):
    key = pick(draw, file, (2,))
    if key is None:
        return
    value = draw(st.sampled_from([0.0, -2.0, 1.0, 64.0, 0.5, float("nan"), float("inf")]))
    shape = draw(st.sampled_from([(), (1,), (1, 1), (2,)]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]))
    whole = dtype == torch.int64 and value != value or value == float("inf")
    file.tensors[key] = torch.full(shape, 3.0 if whole else value).to(dtype)


def poison(draw, file):
    key = pick(draw, file)
    tensor = file.tensors[key].float().clone()
    if tensor.numel():
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = draw(st.sampled_from([float("nan"), float("inf")]))
    file.tensors[key] = tensor


def enlarge(draw, file):
    key = pick(draw, file)
    file.tensors[key] = file.tensors[key].float() * draw(st.sampled_from([0.0, 1e-6, -1.0, 1e4]))


def extend(draw, file):
    key = pick(draw, file)
    name = key.rsplit(".", 2)[0]
    extra, harm = draw(
        st.sampled_from(
            [
                ("diff_b", 0.0), ("diff_b", 1.0), ("diff", 0.0), ("w_norm", 1.0), ("dora_scale", 1.0),
                ("dora_scale", 0.0),
                ("lokr_w1", 1.0), ("hada_w1_a", 1.0), ("scalar", 1.0), ("weight", 1.0), ("lora_mid.weight", 1.0),
            ]
        )
    )  # fmt: skip
    file.tensors[f"{name}.{extra}"] = torch.full((4, 4), harm)
    if harm or extra == "dora_scale":
        file.doomed = f"{name}.{extra} is no LoRA"


def add_text_encoder(draw, file):
    value = draw(st.sampled_from([0.0, 1.0]))
    name = draw(st.sampled_from(["text_encoder.layers.0.fc1", "lora_te1_layers_0_fc1", "text_encoders.t5xxl.layer"]))
    file.tensors |= {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.full((4, 2), value)}
    if value:
        file.doomed = f"{name} is a text encoder's"


def declare(draw, file):
    alpha = draw(st.sampled_from([2, 0.5, -1, None, "4", True]))
    file.header = {"transformer.lora_alpha": alpha, "transformer.peft_type": draw(st.sampled_from(["LORA", None]))}


CHANGES = [rename, drop, double, retype, reshape, rescale, poison, enlarge, extend, add_text_encoder, declare]


def meant(file, shapes):
    """The change of each layer by the plainest reading of the file; None where it must be refused."""
    if file.doomed or not file.pairs:
        return None
    expected = {}
    for (key_a, key_b, key_alpha), (layers, swapped) in file.pairs.items():
        a, b = file.tensors[key_a], file.tensors[key_b]
        if not (a.is_floating_point() and b.is_floating_point()):
            return None
        a, b = a.double(), b.double()
        a, b = (one.flatten(1) if one.dim() > 2 and set(one.shape[2:]) == {1} else one for one in (a, b))
        rows = [shapes[layer][0] for layer in layers]
        if a.dim() != 2 or b.dim() != 2 or not len(a) or len(a) != b.shape[1]:
            return None
        if (len(b), a.shape[1]) != (sum(rows), shapes[layers[0]][1]) or not (a.isfinite().all() and b.isfinite().all()):
            return None
        scale = 1.0
        if key_alpha is not None:
            alpha = file.tensors[key_alpha]
            if alpha.numel() != 1 or not alpha.double().isfinite().all():
                return None
            scale = float(alpha) / len(a)
        elif file.header is not None:
            alpha = file.header["transformer.lora_alpha"]
            if alpha is None or isinstance(alpha, str | bool):
                return None
            scale = alpha / len(a)
        delta = scale * b @ a
        if swapped:
            delta = torch.cat(delta.chunk(2)[::-1])
        expected |= dict(zip(layers, delta.split(rows), strict=True))
    return expected


def refusal(file, backbone):
    """What the reader makes of a file: its state, or the sentence of its refusal."""
    try:
        return lora_files.read(file, backbone), ""
    except ValueError as error:
        sentence = str(error)
        assert str(file) in sentence and "\n" not in sentence and len(sentence) < 600, sentence
        return None, sentence


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_file_means_its_change_or_is_refused_in_one_sentence(bases, tmp_path_factory, data):
    layout, family = data.draw(st.sampled_from(CASES))
    backbone, shapes = bases[family]
    file = subject(data.draw, layout, shapes, family)
    for change in data.draw(st.lists(st.sampled_from(CHANGES), max_size=3)):
        if file.doomed or not file.pairs:
            break
        change(data.draw, file)
        file.done.append(change.__name__)
    path = Path(tmp_path_factory.getbasetemp()) / "fuzz.safetensors"
    header = {"lora_adapter_metadata": json.dumps(file.header)} if file.header is not None else None
    save_file({key: tensor.contiguous() for key, tensor in file.tensors.items()}, path, header)
    expected = meant(file, shapes)
    state, sentence = refusal(path, backbone)
    if expected is None:
        assert state is None, f"read in spite of {file.done}: {file.doomed}"
    else:
        assert state is not None, f"refused after {file.done}: {sentence}"
        assert adapters.adapted(state) == sorted(expected)
        for layer, delta in expected.items():
            bound = 1e-5 * max(1.0, float(delta.abs().max()))
            torch.testing.assert_close(adapters.delta(state, layer).double(), delta, rtol=1e-4, atol=bound)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 1000, suppress_health_check=list(HealthCheck))
@given(spot=st.integers(0, 4000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_file_of_damaged_bytes_is_read_as_it_stands_or_refused_in_one_sentence(
    bases, tmp_path_factory, spot, byte, cut
):
    backbone, shapes = bases["flux"]
    path = Path(tmp_path_factory.getbasetemp()) / "damaged.safetensors"
    made = build(
        "diffusers with metadata", "flux", {"proj_out": shapes["proj_out"], "x_embedder": shapes["x_embedder"]}
    )
    content = bytearray(made.write(path.parent, path.name).read_bytes())
    content[spot % len(content)] = byte
    path.write_bytes(content[: spot % len(content)] if cut else content)
    state, _ = refusal(path, backbone)
    if state is not None:  # what another reader finds there, all of it
        found = load_file(path)
        assert len(found) == len(state) and {tuple(t.shape) for t in found.values()} == {
            tuple(t.shape) for t in state.values()
        }
