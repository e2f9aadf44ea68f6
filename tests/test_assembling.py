"""A single-file checkpoint becomes a teacher's folder."""

import filecmp
import shutil

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from pipeline import artifacts, backbones
from pipeline.backbones import assembling
from pipeline.cli import main
from tests.tiny import make_tiny_flux, make_tiny_qwen_image, make_tiny_z_image

MAKERS = {"flux": make_tiny_flux, "qwen_image": make_tiny_qwen_image, "z_image": make_tiny_z_image}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and a model of other weights, per family."""
    root = tmp_path_factory.mktemp("folders")
    return {name: (make(root / name / "base"), make(root / name / "own", seed=1)) for name, make in MAKERS.items()}


def tensors(folder):
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def original_z_image(state):
    """The keys of Z-Image's authors: q, k and v in one matrix, other names of the norms and of the ends."""
    renamed = {}
    for key, tensor in state.items():
        if ".to_k.weight" in key or ".to_v.weight" in key:
            continue
        if ".to_q.weight" in key:
            parts = [state[key.replace("to_q", name)] for name in ("to_q", "to_k", "to_v")]
            renamed[key.replace("to_q", "qkv")] = torch.cat(parts)
            continue
        for theirs, ours in {
            "final_layer.": "all_final_layer.2-1.",
            "x_embedder.": "all_x_embedder.2-1.",
            ".attention.k_norm.": ".attention.norm_k.",
            ".attention.q_norm.": ".attention.norm_q.",
            ".attention.out.": ".attention.to_out.0.",
        }.items():
            key = key.replace(ours, theirs)
        renamed[key] = tensor
    return renamed


LAYOUTS = {
    "diffusers": lambda state: state,
    "comfy": lambda state: (
        {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()} | {"vae.x": torch.zeros(1)}
    ),
}


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folder_is_the_model_that_the_checkpoint_came_from(folders, tmp_path, family, layout):
    base, own = folders[family]
    save_file(LAYOUTS[layout](tensors(own)), tmp_path / "own.safetensors")
    made = assembling.assemble(tmp_path / "own.safetensors", base, tmp_path / "made")
    assert backbones.load(made, "cpu", ()).family == family
    loaded = DiffusionPipeline.from_pretrained(made).transformer.state_dict()
    assert loaded.keys() == tensors(own).keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors(own).items())
    others = {p.relative_to(base) for p in base.rglob("*") if p.is_file() and "transformer" not in p.parts}
    assert others == {p.relative_to(made) for p in made.rglob("*") if p.is_file() and "transformer" not in p.parts}
    for name in others:
        assert filecmp.cmp(base / name, made / name) and (base / name).stat().st_ino == (made / name).stat().st_ino


@pytest.fixture
def shared(folders, tmp_path):
    """A base whose T5 lies elsewhere behind links, and a checkpoint for it."""
    base = tmp_path / "base"
    shutil.copytree(folders["flux"][0], base)
    for part in ("text_encoder_2", "tokenizer_2"):
        (base / part).rename(tmp_path / part)
        (base / part).symlink_to(f"../{part}")
    save_file(tensors(folders["flux"][1]), tmp_path / "own.safetensors")
    return base


def test_parts_behind_links_are_in_the_folder(shared, tmp_path):
    (shared / "vae" / "config.json").rename(tmp_path / "config.json")
    (shared / "vae" / "config.json").symlink_to("../../config.json")
    made = assembling.assemble(tmp_path / "own.safetensors", shared, tmp_path / "made")
    assert not any(path.is_symlink() for path in made.rglob("*"))
    assert DiffusionPipeline.from_pretrained(made).text_encoder_2 is not None
    assert [n for n in artifacts.files(made) if "transformer" not in n] == [
        n for n in artifacts.files(shared) if "transformer" not in n
    ]


def test_notes_of_the_operating_system_are_left_behind(shared, tmp_path):
    for name in (".DS_Store", "vae/._config.json", "vae/Thumbs.db", "tokenizer/desktop.ini", ".cache/x"):
        (shared / name).parent.mkdir(exist_ok=True)
        (shared / name).write_text("note")
    made = assembling.assemble(tmp_path / "own.safetensors", shared, tmp_path / "made")
    assert artifacts.files(made) == sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())


def remove_files(part):
    for file in part.iterdir():
        file.unlink()


SPOILT = {
    "text_encoder_2 is a link to ../text_encoder_2, which is not there: restore or remove it": lambda base: (
        base.with_name("text_encoder_2").rename(base.with_name("moved"))
    ),
    "vae/loop is a link to .*/base, which holds the link: remove it": lambda base: (base / "vae/loop").symlink_to(".."),
    "tokenizer holds no file, but .*/model_index.json names it: restore the part": lambda base: shutil.rmtree(
        base / "tokenizer"
    ),
    "tokenizer_2 holds no file, but": lambda base: remove_files(base / "tokenizer_2"),
}


@pytest.mark.parametrize("message", SPOILT)
def test_a_part_that_cannot_be_copied_is_named_and_nothing_is_written(shared, tmp_path, message):
    SPOILT[message](shared)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        assembling.assemble(tmp_path / "own.safetensors", shared, tmp_path / "made")
    assert sorted(tmp_path.iterdir()) == before


def test_the_keys_of_the_authors_are_converted(folders, tmp_path):
    base, own = folders["z_image"]
    theirs = original_z_image(tensors(own))
    assert "layers.0.attention.qkv.weight" in theirs
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in theirs.items()}, tmp_path / "own.safetensors")
    made = assembling.assemble(tmp_path / "own.safetensors", base, tmp_path / "made")
    loaded = DiffusionPipeline.from_pretrained(made).transformer.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors(own).items())


def test_the_keys_of_fluxs_authors_are_converted(folders, tmp_path):
    """On the meta device: diffusers knows that layout at the full width alone."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    wide, mlp = 3072, 4 * 3072
    shapes = {"img_in": (wide, 64), "txt_in": (wide, 4096)}
    for name, width in {"time_in": 256, "guidance_in": 256, "vector_in": 768}.items():
        shapes |= {f"{name}.in_layer": (wide, width), f"{name}.out_layer": (wide, wide)}
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}"
        shapes |= {f"{block}_mod.lin": (6 * wide, wide), f"{block}_attn.qkv": (3 * wide, wide)}
        shapes |= {f"{block}_attn.proj": (wide, wide), f"{block}_mlp.0": (mlp, wide), f"{block}_mlp.2": (wide, mlp)}
    block = "single_blocks.0"
    shapes |= {f"{block}.linear1": (3 * wide + mlp, wide), f"{block}.linear2": (wide, wide + mlp)}
    shapes |= {f"{block}.modulation.lin": (3 * wide, wide)}
    shapes |= {"final_layer.linear": (64, wide), "final_layer.adaLN_modulation.1": (2 * wide, wide)}
    state = {f"{name}.weight": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.empty(shape[0], device="meta") for name, shape in shapes.items()}
    norms = [f"double_blocks.0.{stream}_attn.norm" for stream in ("img", "txt")] + ["single_blocks.0.norm"]
    state |= {f"{n}.{x}_norm.scale": torch.empty(128, device="meta") for n in norms for x in ("query", "key")}
    fitting = assembling._fitting(state, model, tmp_path / "x.safetensors", tmp_path)
    assert {key: tensor.shape for key, tensor in fitting.items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    small = {key: tensor for key, tensor in state.items() if "guidance_in" not in key}
    with pytest.raises(ValueError, match="of another architecture than .*: it lacks time_text_embed.guidance_embedder"):
        assembling._fitting(small, model, tmp_path / "x.safetensors", tmp_path)


def test_weights_in_eight_bits_become_bfloat16(folders, tmp_path):
    base, own = folders["flux"]
    eight = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors(own).items()}
    save_file(eight, tmp_path / "own.safetensors")
    made = assembling.assemble(tmp_path / "own.safetensors", base, tmp_path / "made")
    key = "x_embedder.weight"
    assert tensors(made)[key].dtype == torch.bfloat16 and torch.equal(tensors(made)[key], eight[key].bfloat16())


def changed(state, **changes):
    return {key: tensor for key, tensor in (state | changes).items() if tensor is not None}


REFUSED = {
    "holds no transformer like that of": lambda state: {"vae.x": torch.zeros(1)},
    "is of another architecture than .*: it lacks x_embedder.weight": lambda state: changed(
        state, **{"x_embedder.weight": None}
    ),
    r"it has extra.weight, which is not in .* \(1 keys differ\)": lambda state: changed(
        state, **{"extra.weight": torch.zeros(1)}
    ),
    r"is of another size than .*: x_embedder.weight must be \(32, 32\), got \(2, 2\)": lambda state: changed(
        state, **{"x_embedder.weight": torch.zeros(2, 2)}
    ),
    r"holds scaled 8-bit weights \(x_embedder.scale_weight\): take the model's bf16 or fp16 file": lambda state: (
        changed(state, **{"x_embedder.scale_weight": torch.zeros(1)})
    ),
}


def test_a_key_that_a_checkpoint_lacks_is_named_in_the_keys_of_diffusers(folders, tmp_path):
    base, own = folders["z_image"]
    key = "all_final_layer.2-1.linear.weight"
    save_file(changed(tensors(own), **{key: None}), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"it lacks {key} \(1 keys differ\)"):
        assembling.assemble(tmp_path / "x.safetensors", base, tmp_path / "made")


@pytest.mark.parametrize("message", REFUSED)
def test_another_checkpoint_is_one_sentence_and_nothing_is_written(folders, tmp_path, message):
    base, own = folders["flux"]
    save_file(REFUSED[message](tensors(own)), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        assembling.assemble(tmp_path / "x.safetensors", base, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_command_makes_a_folder_and_refuses_in_one_sentence(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, own = folders["flux"]
    save_file(tensors(own), "own.safetensors")
    (tmp_path / "broken.safetensors").write_text("no")

    def glance(checkpoint, base, out):
        return CliRunner().invoke(main, ["assemble", checkpoint, "--base", str(base), "--out", out])

    done = glance("own.safetensors", base, "models/own")
    assert done.exit_code == 0 and done.output == "models/own\n"
    for checkpoint, folder, out, message in (
        ("own.safetensors", base, "models/own", "--out must not be there yet, got models/own"),
        ("own.ckpt", base, "made", "CHECKPOINT must be a .safetensors file, got own.ckpt"),
        ("none.safetensors", base, "made", "none.safetensors is missing"),
        ("broken.safetensors", base, "made", "broken.safetensors is no safetensors file"),
        ("own.safetensors", "nowhere", "made", "teacher: nowhere is no folder"),
    ):
        done = glance(checkpoint, folder, out)
        assert done.exit_code == 1 and message in done.output and not (tmp_path / "made").exists()
