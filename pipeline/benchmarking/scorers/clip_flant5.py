"""CLIP-FlanT5: a T5 whose encoder reads an image between two pieces of text, as LLaVA does with a decoder."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

from pipeline.benchmarking.scorers import model_files
from pipeline.benchmarking.scorers.model_files import CLIP_CONFIG, CLIP_FLANT5, FLAN_T5_TOKENIZER

BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
    " and polite answers to the user's questions. USER: "
)
AFTER = '\nDoes this figure show "{}"? Please answer yes or no. ASSISTANT: '
ANSWER = "Yes"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
EXPECTED = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
SHARED = ("t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight")  # `shared.weight`; may lack in a file


class ClipFlanT5(nn.Module):
    """The three networks: CLIP's image encoder, a projector of two layers and the T5.

    Args:
        text: Configuration of the T5.
        vision: Configuration of CLIP's image encoder.
    """

    def __init__(self, text: T5Config, vision: CLIPVisionConfig) -> None:
        super().__init__()
        self.t5 = T5ForConditionalGeneration(text)
        self.vision_tower = CLIPVisionModel(vision)
        self.mm_projector = nn.Sequential(
            nn.Linear(vision.hidden_size, text.d_model), nn.GELU(), nn.Linear(text.d_model, text.d_model)
        )

    def embedded(self, pixels: Tensor, before: Sequence[int], after: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The input of the T5's encoder: text, then the image's patches without the class token, then text.

        Args:
            pixels: Shape (B, 3, S, S).
            before: The tokens before the image.
            after: The tokens after each image.

        Returns:
            Embeddings (B, T, D), with zeros after the end of shorter rows, and the mask (B, T) of the rest.
        """
        embed = self.t5.get_input_embeddings()
        patches = self.mm_projector(self.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])

        def words(tokens: Sequence[int]) -> Tensor:
            return embed(torch.tensor(tokens, device=pixels.device))

        rows = [torch.cat([words(before), image, words(rest)]) for image, rest in zip(patches, after, strict=True)]
        lengths = torch.tensor([len(row) for row in rows], device=pixels.device)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded, (torch.arange(padded.shape[1], device=pixels.device) < lengths[:, None]).long()

    def forward(self, pixels: Tensor, before: Sequence[int], after: Sequence[Sequence[int]], labels: Tensor) -> Tensor:
        """The logits of the labels' tokens, float32 (B, L, V), for labels (B, L)."""
        embeddings, mask = self.embedded(pixels, before, after)
        return self.t5(inputs_embeds=embeddings, attention_mask=mask, labels=labels).logits.float()


class FigureQuestion:
    """Asks the network whether a figure shows its prompt.

    Args:
        network: The network, on its device.
        tokenizer: The tokenizer of the T5; it ends each piece of text with </s>.

    Raises:
        ValueError: The answer is not one token and </s>.
    """

    def __init__(self, network: ClipFlanT5, tokenizer: Tokenizer) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.answer = tokenizer.encode(ANSWER).ids
        end = network.t5.config.eos_token_id
        if len(self.answer) != 2 or self.answer[1] != end:
            raise ValueError(
                f"the weight {FLAN_T5_TOKENIZER.name} must make two tokens of {ANSWER!r}, the last of which is {end},"
                f" got {self.answer}"
            )

    @torch.no_grad()
    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """The VQAScore of each image, between 0 and 1; RGB images of any sizes."""
        weight = self.network.t5.get_input_embeddings().weight
        size = self.network.vision_tower.config.image_size
        batch = torch.cat([pixels(image, size) for image in images]).to(weight.device, weight.dtype)
        after = [self.tokenizer.encode(AFTER.format(prompt)).ids for prompt in prompts]
        labels = torch.tensor([self.answer] * len(images), device=weight.device)
        logits = self.network(batch, self.tokenizer.encode(BEFORE).ids, after, labels)
        return cast(list[float], exp_mean_log(logits, labels).tolist())


def pixels(image: Image.Image, size: int) -> Tensor:
    """The input of CLIP's encoder: the whole image on a square of CLIP's mean colour, (1, 3, size, size)."""
    raw = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    height, width = raw.shape[2:]
    wide, high = max(0, height - width), max(0, width - height)
    square = functional.pad((raw - mean) / std, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
    if square.shape[2] == size:
        return square
    resized = functional.interpolate(square, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    return torch.maximum(torch.minimum(resized, (1 - mean) / std), -mean / std)


def exp_mean_log(logits: Tensor, labels: Tensor) -> Tensor:
    """The geometric mean of the probabilities of a row's tokens, (B,), from logits (B, L, V) and labels (B, L)."""
    return logits.log_softmax(dim=-1).gather(-1, labels[..., None])[..., 0].mean(dim=1).exp()


def load(places: Mapping[str, Path], device: torch.device) -> FigureQuestion:
    """The network and its tokenizer; bfloat16 on a GPU, float32 on the CPU.

    Args:
        places: The path of each of the three weights, by name.
        device: Device of the network.

    Raises:
        ValueError: A file is missing or unreadable, a tensor is missing or of another shape, or the network or the
            tokenizer is a wrong one.
    """
    folder = places[CLIP_FLANT5.name]
    model_files.require(CLIP_FLANT5, folder, "config.json")
    text = model_files.read_json(CLIP_FLANT5, folder / "config.json")
    for key, value in EXPECTED.items():
        if text.get(key, value) != value:
            raise ValueError(f"the weight {CLIP_FLANT5.name} must have {key} {value}, got {text[key]}")
    vision = model_files.read_json(CLIP_CONFIG, model_files.file_of(CLIP_CONFIG, places[CLIP_CONFIG.name]))
    of_t5 = {key: value for key, value in text.items() if key not in ("model_type", "architectures")}
    with init_empty_weights():
        network = ClipFlanT5(T5Config.from_dict(of_t5), CLIPVisionConfig.from_dict(vision.get("vision_config", vision)))
    _fill(network, folder, device)
    return FigureQuestion(network.eval().requires_grad_(False), _tokenizer(places[FLAN_T5_TOKENIZER.name]))


def _fill(network: ClipFlanT5, folder: Path, device: torch.device) -> None:
    """Fills an empty network with its tensors, one file at a time."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items() if name not in SHARED}
    missing = set(shapes)
    for file in _files(folder):
        found = {name: tensor for key, tensor in _tensors(file).items() if (name := _name(key)) in shapes}
        for name, tensor in found.items():
            if tensor.shape != shapes[name]:
                raise ValueError(
                    f"the weight {CLIP_FLANT5.name} must have {name.removeprefix('t5.')} of shape"
                    f" {tuple(shapes[name])}, got {tuple(tensor.shape)} in {file.name}"
                )
        state = {name: tensor.to(device, dtype) for name, tensor in found.items()}
        network.load_state_dict(state, strict=False, assign=True)  # copying would overwrite the embedding with lm_head
        missing -= state.keys()
    if missing:
        raise ValueError(
            f"the weight {CLIP_FLANT5.name} must have {len(shapes)} tensors,"
            f" got {folder} without {len(missing)} of them, such as {min(missing).removeprefix('t5.')}"
        )
    network.t5.set_input_embeddings(network.t5.shared)
    network.to(device)  # buffers


def _name(key: str) -> str:
    """The name of a tensor in the network, from its name in the file."""
    if key.startswith("vision_tower.vision_tower."):
        return f"vision_tower.{key.removeprefix('vision_tower.vision_tower.').removeprefix('vision_model.')}"
    return key if key.startswith("mm_projector.") else f"t5.{key}"


def _files(folder: Path) -> list[Path]:
    """The files with the tensors: the files that an index names, else all; safetensors are preferred to bin files."""
    for pattern in ("*.safetensors", "*.bin"):
        index = next(iter(sorted(folder.glob(f"{pattern}.index.json"))), None)
        if index is not None:
            named = sorted(set(model_files.read_json(CLIP_FLANT5, index)["weight_map"].values()))
            model_files.require(CLIP_FLANT5, folder, *named)
            return [folder / name for name in named]
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise ValueError(f"the weight {CLIP_FLANT5.name} must hold safetensors or bin files, got {folder} with neither")


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return cast(dict[str, Tensor], torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"the weight {CLIP_FLANT5.name} must hold whole files, got {file} ({reason})") from error


def _tokenizer(place: Path) -> Tokenizer:
    file = model_files.file_of(FLAN_T5_TOKENIZER, place)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower type
        raise ValueError(f"the weight {FLAN_T5_TOKENIZER.name} must be a tokenizer, got {file} ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
