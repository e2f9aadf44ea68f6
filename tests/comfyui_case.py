"""Bases with random weights that ComfyUI loads by its own code, a pair for each, and a headless ComfyUI server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file

from pipeline import backbones
from pipeline.bundle import experts, write
from pipeline.bundle.manifest import Bundle
from pipeline.partition import compute
from tests import tiny
from tests.pairs import write_adapter
from tests.recorded import small_params

ROOT = Path(__file__).parent
CHECKOUT, PYTHON = "GLANCE_COMFYUI", "GLANCE_COMFYUI_PYTHON"
NODES = "comfyui_nodes.py"
PROMPT, NEGATIVE = "a red star", "a blue circle"
START_S, RUN_S = 180, 180


def make_flux(path: Path) -> Path:
    """A FLUX.1 whose sizes ComfyUI reads from the weights: 16 latent channels, heads of 128 channels."""

    def build():
        pipe = tiny.build_pipeline()
        pipe.transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=128,
            num_attention_heads=1,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=True,
        )
        pipe.vae = _autoencoder()
        return pipe

    return tiny._make(build, path, seed=1)


def make_qwen_image(path: Path) -> Path:
    """A Qwen-Image of 16 latent channels, with heads of 128 channels and the published scale of the latents."""

    def build():
        pipe = tiny.build_qwen_image()
        pipe.transformer = QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=128,
            num_attention_heads=1,
            joint_attention_dim=24,
        )
        pipe.vae = AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        return pipe

    return tiny._make(build, path, seed=1)


def make_z_image(path: Path) -> Path:
    """A Z-Image of 16 latent channels and few layers, as narrow as ComfyUI's sizes of its other parts allow."""

    def build():
        pipe = tiny.build_z_image()
        pipe.transformer = ZImageTransformer2DModel(
            in_channels=16, dim=1152, n_layers=1, n_refiner_layers=2, n_heads=9, n_kv_heads=9, cap_feat_dim=24
        )
        pipe.vae = _autoencoder()
        return pipe

    return tiny._make(build, path, seed=1)


def _autoencoder() -> AutoencoderKL:
    """FLUX.1's autoencoder, whose sizes ComfyUI has built in, with random weights that make images of some contrast."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(3)
    return vae


MAKERS: dict[str, Callable[[Path], Path]] = {
    "flux": make_flux,
    "qwen_image": make_qwen_image,
    "z_image": make_z_image,
}


def published_names(family: str, file: Path, renamed: Path) -> Path:
    """A transformer's file with the layers' names of ComfyUI's own file: `renamed` for Z-Image, else `file` itself."""
    if family != "z_image":
        return file
    names = {"all_x_embedder.2-1": "x_embedder", "all_final_layer.2-1": "final_layer", "to_out.0": "out"}
    names |= {"norm_q": "q_norm", "norm_k": "k_norm"}
    state = load_file(file)
    for name in list(state):
        state[reduce(lambda text, pair: text.replace(*pair), names.items(), name)] = state.pop(name)
    for name in [name for name in state if ".to_q." in name]:
        state[name.replace("to_q", "qkv")] = torch.cat([state.pop(name.replace("to_q", f"to_{x}")) for x in "qkv"])
    save_file(state, renamed)
    return renamed


def make_bundle(
    folder: Path,
    family: str,
    make: Callable[[Path], Path] | None = None,
    acting: Sequence[str] = ("slow", "slow", "fast", "fast"),
    name: str = "base",
    **guidance: float,
) -> Bundle:
    """A bundle of adapters with random weights for a base with random weights, both under `folder`.

    Args:
        folder: An empty folder.
        family: The family.
        make: Writes the base; None = the one that ComfyUI loads.
        acting: The adapter of each of the 4 steps.
        name: The base's folder.
        guidance: `true_cfg_scale` of the student, 1 by default.
    """
    base = (make or MAKERS[family])(folder / name)
    small = small_params(base)
    small = replace(
        small,
        teacher=replace(small.teacher, family=family, true_cfg_scale=1.0, negative_prompt=NEGATIVE),
        student=replace(small.student, true_cfg_scale=guidance.get("true_cfg_scale", 1.0)),
    )
    backbone = backbones.load(base, "cpu", parts=())
    partition = compute(small, backbone.schedule(small.teacher.height, small.teacher.width))
    partition = experts.regroup(partition, acting)
    folders = {phase.name: folder / phase.name for phase in partition.phases}
    for seed, place in enumerate(folders.values()):
        write_adapter(backbones.load(base, "cpu", parts=("transformer",)), place, seed=seed)
    (folder / "bundle").mkdir()
    return write.bundle(folder / "bundle", folders, partition, small.teacher, small.student)


class Server:
    """A ComfyUI without a GPU or a page, in a folder of its own, and what its page would ask of it."""

    def __init__(self, checkout: Path, folder: Path):
        self.folder, self.log = folder, folder / "server.log"
        for name in ("custom_nodes", "input", "output", "user", "temp"):
            (folder / name).mkdir()
        shutil.copy(ROOT / NODES, folder / "custom_nodes" / NODES)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [os.environ.get(PYTHON, sys.executable), "main.py", "--cpu", "--fp32-unet", "--fp32-vae"]
        command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(folder)]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=checkout, env=env, stdout=log, stderr=subprocess.STDOUT)
        self._wait(lambda: self.process.poll() is not None or self._answers(), START_S)
        if self.process.poll() is not None:
            raise ValueError(f"ComfyUI does not start:\n{self.log.read_text()[-3000:]}")

    def close(self) -> None:
        """Ends the server."""
        self.process.terminate()
        self.process.wait(30)

    def place(self, folder: str, name: str, source: Path | None = None) -> None:
        """Puts a file of a model where ComfyUI looks for it: a link, or an empty file that only has the name."""
        path = self.folder / "models" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(source.resolve()) if source else path.touch()

    def declared(self) -> dict[str, Any]:
        """What ComfyUI says of each class of nodes."""
        return self._ask("object_info")

    def queue(self, api: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Asks for a run: its id, or "", and what ComfyUI found wrong."""
        try:
            answer = self._ask("prompt", {"prompt": api})
        except urllib.error.HTTPError as refused:
            return "", json.loads(refused.read())
        return answer["prompt_id"], answer["node_errors"]

    def run(self, api: dict[str, Any]) -> dict[str, Any]:
        """Runs a workflow to its end and returns its entry in the history. Raises ValueError if it is refused."""
        number, faults = self.queue(api)
        if not number or faults:
            raise ValueError(json.dumps(faults))
        self._wait(lambda: number in self._ask(f"history/{number}"), RUN_S)
        return self._ask(f"history/{number}")[number]

    def output(self, suffix: str) -> Path:
        """The newest output file."""
        return max((self.folder / "output").rglob(f"*{suffix}"), key=lambda path: path.stat().st_mtime_ns)

    def _answers(self) -> bool:
        try:
            return bool(self._ask("queue"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def _ask(self, path: str, content: Any = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self.address}/{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                self.close()
                raise TimeoutError(f"ComfyUI took more than {seconds} s:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
