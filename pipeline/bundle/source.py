"""The picture that a run starts from, and the part of it that the run may change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline import flow, image_files
from pipeline.artifacts import file_digest
from pipeline.backbones.base import Backbone
from pipeline.bundle.manifest import Bundle
from pipeline.flow import stepping

Hold = Callable[[Tensor, float], Tensor]
"""(x, sigma) -> x, as `sampling.sample_plan` calls it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture of the bundle's size, and how much of it a run changes."""

    image: Tensor
    """uint8 (height, width, 3)."""
    strength: float
    """The share of the steps that run, see `strength.first_step`."""
    digest: str
    """Digest of the picture's file."""
    mask: Tensor | None = None
    """bool (height, width), true where the picture is made anew; None = everywhere."""
    mask_digest: str | None = None
    """Digest of the mask's file."""

    @classmethod
    def read(cls, bundle: Bundle, image: Path, strength: float, mask: Path | None = None) -> "Source":
        """Reads a picture and a mask of the same size, and brings both to the bundle's size.

        Both are resized with Lanczos until they cover the bundle's size, and their middle is cut out. Then a mask is
        white from 128 of 255 on, as in the stock pipelines.

        Raises:
            ValueError: A file is no picture, the mask has another size or no white pixel, or as `stepping.first_step`.
        """
        stepping.first_step(bundle.path, len(bundle.u), strength)
        picture = image_files.picture(image, "--image")
        pixels = image_files.covering(picture, bundle.height, bundle.width, "RGB")
        source = cls(image=torch.tensor(pixels), strength=strength, digest=file_digest(image))
        if mask is None:
            return source
        shape = image_files.picture(mask, "--mask")
        if shape.size != picture.size:
            sizes = ["{} x {}".format(*one.size) for one in (picture, shape)]
            raise ValueError(f"--mask must have the size of --image, {sizes[0]}, got {sizes[1]}")
        white = torch.tensor(image_files.covering(shape, bundle.height, bundle.width, "L")) >= 128
        if not white.any():
            raise ValueError(f"--mask must be white where the image is made anew, and {mask} has no white pixel")
        return cls(**vars(source) | {"mask": white, "mask_digest": file_digest(mask)})

    def enter(self, backbone: Backbone, seeds: Sequence[int], sigma: float) -> tuple[Tensor, Hold | None]:
        """The noised picture, from which a run starts, and what puts the picture back outside the mask.

        Args:
            backbone: The base with its autoencoder.
            seeds: The seed of each image, length B.
            sigma: The level at which the run starts.

        Returns:
            x = (1 - sigma) x_0 + sigma noise, shape (B, T, C), and a function for `sample_plan`; None without a mask.
        """
        x_0, noise = backbone.encode_image(self.image, seeds)

        def noised(sigma: float) -> Tensor:
            return flow.interpolate(x_0, noise, sigma)

        if self.mask is None:
            return noised(sigma), None
        anew = tokens(self.mask, backbone.grid(*self.mask.shape), x_0.shape[-1]).to(x_0.device)
        return noised(sigma), lambda x, sigma: torch.where(anew, x, noised(sigma))


def tokens(mask: Tensor, grid: tuple[int, int], channels: int) -> Tensor:
    """A mask of pixels as a mask of packed latents: the pixel at the corner of each latent decides.

    Args:
        mask: bool (height, width).
        grid: (rows, columns) of the tokens.
        channels: C of a token, four times the autoencoder's.

    Returns:
        bool (1, T, C).
    """
    from pipeline.backbones.packing import pack  # imports a pipeline of diffusers, whose warnings a family silences

    small = torch.nn.functional.interpolate(mask[None, None].float(), size=(2 * grid[0], 2 * grid[1]))
    return pack(small.repeat(1, channels // 4, 1, 1)).bool()
