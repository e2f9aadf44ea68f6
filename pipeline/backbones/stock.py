"""What the families share: a diffusers pipeline directory as a backbone, around a FLUX-like packing of latents."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib import import_module
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn

from pipeline import artifacts
from pipeline.adapters.lora_names import Target
from pipeline.backbones import fusing, loading, quantization, weight_files
from pipeline.backbones.base import Conditioning, ForwardInputs
from pipeline.backbones.packing import pack, unpack
from pipeline.backbones.teacher import Teacher
from pipeline.flow.guidance import Velocity, forwards, true_cfg
from pipeline.flow.schedule import Schedule, check_scheduler

WORD_START = re.compile(r"[▁Ġ]([a-z]+)")  # how T5's and Qwen's vocabularies mark a token that begins a word


class StockBackbone(ABC):
    """A backbone (see base.py) over a diffusers pipeline directory; a family fills in what differs.

    Args:
        teacher: The directory, and how its weights are held; its LoRAs are fused, see `fusing.fuse`.
        device: Where the loaded parts lie.
        parts: Which of "text", "transformer" and "vae" to load.
        offload: Keep the parts in main memory, and only the part that was used last on the device.

    Raises:
        ValueError: A part is missing, has only pickles or does not fit its configuration; the scheduler is not one of
            flow matching; the transformer is not the family's; the quantisation needs another device or a package; or
            a LoRA does not fit.
        FileNotFoundError: A configuration file is missing.
    """

    family: ClassVar[str]
    lora_targets: ClassVar[dict[str, list[str]]]
    pipeline_class: ClassVar[type[DiffusionPipeline]]
    part_modules: ClassVar[dict[str, tuple[str, ...]]]
    """The sub-folders of each part."""
    tokenizer: ClassVar[str] = "tokenizer"
    """The sub-folder of the tokenizer that gives a text encoder's state per token."""
    lora_names: ClassVar[dict[str, Target]] = {}
    """Other names of the transformer's layers in trainers' LoRA files; "{}" is a block's number."""

    def __init__(self, teacher: Teacher, device: torch.device, parts: Sequence[str], *, offload: bool = False):
        self.path = path = teacher.path
        self.offload, self.home = offload, torch.device("cpu") if offload else device
        self.device, self.dtype, self.parts = device, teacher.torch_dtype, tuple(parts)
        self.transformer_config: dict[str, Any] = artifacts.read_json(path / "transformer" / "config.json")
        self.vae_config: dict[str, Any] = artifacts.read_json(path / "vae" / "config.json")
        self._scheduler_file = path / "scheduler" / "scheduler_config.json"
        self._scheduler_config = artifacts.read_json(self._scheduler_file)
        self._check_base(path)
        if teacher.quantization != "none":
            quantization.require(teacher.quantization, device)
        self.check_files(parts)
        self._pipe = loading.load(self.pipeline_class, teacher, self.part_modules, parts)
        if teacher.loras and "transformer" in parts:
            fusing.fuse(self, teacher.loras, teacher.quantization)
        if "vae" in parts and isinstance(self._pipe.vae, AutoencoderKL):
            self._pipe.vae.to(memory_format=torch.channels_last)  # its convolutions take a quarter less time
        self._resident: str | None = None  # the part on the device, if `offload`
        for part in self.parts:
            self._move(part, self.home)
            for module in self._modules(part):
                module.requires_grad_(False).eval()

    @property
    def known_as(self) -> dict[str, str]:
        """What headers of LoRA files call the model, where other tools have a name for it.

        `modelspec.architecture` and `ss_base_model_version` name the model, `ss_network_module` the kind of adapter.
        """
        return {}

    @property
    @abstractmethod
    def pixels_per_token(self) -> int:
        """Height and width of a token in pixels: the autoencoder's scale, twice."""

    @abstractmethod
    def encode(self, prompts: list[str], max_sequence_length: int) -> Conditioning:
        """The conditioning of prompts, on the CPU."""

    @abstractmethod
    def stock_guidance(self, true_cfg_scale: float, guidance_scale: float, negative_prompt: str) -> dict[str, Any]:
        """Keyword arguments that give a call of the model's own pipeline this guidance."""

    @abstractmethod
    def _forward(self, inputs: ForwardInputs) -> Tensor:
        """v of the transformer, shape (B, T, C)."""

    @abstractmethod
    def _encode(self, pixels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """A draw per generator of the latents of pixels (1, 3, H, W) in [-1, 1]: (B, C, h, w)."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1]."""

    def check_files(self, parts: Sequence[str]) -> None:
        """Raises ValueError unless the folders of these parts are there, each with whole files of weights."""
        for folder in (self.path / name for part in parts for name in self.part_modules[part]):
            weight_files.check(folder)

    def words(self) -> list[str]:
        """The whole words in the vocabulary of the text encoder that gives a state per token.

        Raises:
            ValueError: The tokenizer cannot be loaded.
        """
        folder = self.path / self.tokenizer
        library, name = artifacts.read_json(self.path / "model_index.json")[self.tokenizer]
        try:  # the tokenizer alone, so that no text encoder need be loaded
            tokenizer = getattr(import_module(library), name).from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the tokenizers package raises nothing narrower
            raise ValueError(f"teacher: {folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        marked = (WORD_START.fullmatch(token) for token in tokenizer.get_vocab())
        return sorted({match[1] for match in marked if match})

    @property
    def latent_channels(self) -> int:
        """Channels of a packed token, four times the autoencoder's.

        They are the transformer's input channels, unless the transformer packs latents itself.
        """
        return self.transformer_config["in_channels"]

    @property
    def latent_dtype(self) -> torch.dtype:
        """Type of the noise, and so of the latents."""
        return self.dtype

    @property
    def transformer(self) -> nn.Module:
        """Frozen and in eval mode. Raises ValueError when it was not loaded."""
        return self.part("transformer").transformer

    @property
    def pipeline(self) -> DiffusionPipeline:
        """The stock pipeline around the same modules; modules of parts that were not loaded are None."""
        return self._pipe

    def skeleton(self) -> nn.Module:
        """The transformer without weights, on the meta device.

        Raises:
            ValueError: diffusers has no transformer of the class that the configuration names.
        """
        name = self.transformer_config.get("_class_name", "")
        transformer_class = getattr(diffusers, name, None)
        if transformer_class is None:
            raise ValueError(f"teacher: the transformer's class must be one of diffusers, got {name!r}")
        with torch.device("meta"):
            return transformer_class.from_config(self.transformer_config)

    def part(self, name: str) -> DiffusionPipeline:
        """The stock pipeline, with the modules of one part. Raises ValueError when it was not loaded."""
        if name not in self.parts:
            raise ValueError(f"the part {name!r} was not loaded, only {', '.join(self.parts) or 'none'}")
        if self.offload and name != self._resident:
            if self._resident is not None:
                self._move(self._resident, self.home)
            self._resident = None  # in case the device is too small for the next part
            self._move(name, self.device)
            self._resident = name
        return self._pipe

    def compile(self) -> None:
        """Lets the first forward compile the transformer's repeated blocks; a handoff compiles nothing again."""
        self.transformer.compile_repeated_blocks()

    def _modules(self, part: str) -> Iterator[nn.Module]:
        modules = (getattr(self._pipe, name) for name in self.part_modules[part])
        return (module for module in modules if isinstance(module, nn.Module))

    def _move(self, part: str, device: torch.device) -> None:
        with torch.inference_mode(False):  # the copies outlast the caller's mode
            for module in self._modules(part):
                module.to(device)

    def _check_base(self, path: Path) -> None:
        """Refuses, before anything is loaded, a folder that is not the family's flow-matching model."""
        try:
            check_scheduler(self._scheduler_config)
        except ValueError as error:
            raise ValueError(f"teacher.path: {self._scheduler_file}: {error}") from None
        (wanted,) = self.pipeline_class._get_signature_types()["transformer"]
        name = self.transformer_config.get("_class_name")
        if name != wanted.__name__:
            raise ValueError(
                f"teacher.path: the transformer of a {self.pipeline_class.__name__} must be a {wanted.__name__}, "
                f"got {name} in {path / 'transformer' / 'config.json'}; restore the folder, or choose another model"
            )

    def schedule(self, height: int, width: int) -> Schedule:
        """The noise levels for images of height x width pixels.

        Raises:
            ValueError: As `latent_shape` does, or the scheduler's shift leaves no distinct levels at that size.
        """
        tokens, _ = self.latent_shape(height, width)
        try:
            return Schedule.from_scheduler_config(self._scheduler_config, tokens)
        except ValueError as error:
            raise ValueError(f"teacher.path: {self._scheduler_file}: {error}") from None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the tokens.

        Raises:
            ValueError: height or width is no positive multiple of a token's pixels.
        """
        size = self.pixels_per_token
        for name, pixels in (("height", height), ("width", width)):
            if pixels < 1 or pixels % size:
                near = max(1, round(pixels / size)) * size
                raise ValueError(
                    f"teacher.{name} must be a positive multiple of {size} pixels, got {pixels}; the nearest is {near}"
                )
        return height // size, width // size

    def latent_shape(self, height: int, width: int) -> tuple[int, int]:
        """(T, C) of one packed latent. Raises as grid does."""
        rows, columns = self.grid(height, width)
        return rows * columns, self.latent_channels

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Tensor:
        """x at sigma = 1, shape (B, T, C): row i from torch.Generator("cpu").manual_seed(seeds[i])."""
        return self._noise(_generators(seeds), self.grid(height, width), self.latent_dtype)

    def _noise(self, generators: Sequence[torch.Generator], grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
        shape = (1, self.latent_channels // 4, 2 * grid[0], 2 * grid[1])
        noise = [torch.randn(shape, generator=generator, dtype=dtype) for generator in generators]
        return pack(torch.cat(noise)).to(self.device, self.latent_dtype)

    @torch.no_grad()
    def encode_image(self, image: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """x_0 and noise of each seed, drawn one after the other as the stock pipelines do with one generator."""
        self.part("vae")
        grid, generators = self.grid(*image.shape[:2]), _generators(seeds)
        pixels = 2 * (image.permute(2, 0, 1)[None].float() / 255) - 1
        x_0 = pack(self._encode(pixels.to(self.device, self.dtype), generators))
        return x_0.to(self.latent_dtype), self._noise(generators, grid, self.dtype)

    def velocity(
        self,
        x: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: float,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """As `base.Backbone.velocity` says."""
        rows, columns = grid or (isqrt(x.shape[1]),) * 2
        if rows * columns != x.shape[1]:
            raise ValueError(f"grid must be (rows, columns) of the {x.shape[1]} tokens, got {(rows, columns)}")
        conditioning = {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in conditioning.items()
        }
        guidance = None
        if self.transformer_config.get("guidance_embeds"):
            guidance = torch.full((len(x),), guidance_scale, dtype=torch.float32, device=self.device)
        timestep = 1000 * sigma.to(self.device, torch.float32)
        inputs = ForwardInputs(x.to(self.device, self.dtype), timestep, conditioning, guidance, (rows, columns))
        return self._forward(inputs).to(x.dtype)

    def guide(self, cond: Velocity, uncond: Velocity, scale: float) -> Velocity:
        """True CFG as the stock pipeline does it."""
        return true_cfg(cond, uncond, scale)

    @torch.no_grad()
    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """uint8 (B, height, width, 3) on the CPU: round(255 clamp(image / 2 + 1 / 2, 0, 1))."""
        self.part("vae")
        latents = unpack(x.to(self.device, self.dtype), self.grid(height, width))
        image = (self._decode(latents) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
        return (image * 255).round().to(torch.uint8).cpu()


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def stock_true_cfg(scale: float, negative_prompt: str) -> dict[str, Any]:
    """Keyword arguments of a stock pipeline for true CFG; none where it is off."""
    return {"true_cfg_scale": scale, "negative_prompt": negative_prompt} if forwards(scale) == 2 else {}
