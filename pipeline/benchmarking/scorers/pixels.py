"""Images as tensors, resized for the scorers.

Images are prepared on the CPU, one at a time. So images may differ in size, and the scorer's device changes no pixel.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def read(image: Image.Image) -> torch.Tensor:
    """An image as float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def resize(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(C, H, W) at another size: bicubic with antialiasing, which can leave the range of `x`."""
    return F.interpolate(x[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]


def centre(x: torch.Tensor, side: int) -> torch.Tensor:
    """The middle square of `side` pixels of (C, H, W), half a pixel to the top left if the middle is between pixels."""
    top, left = (x.shape[1] - side) // 2, (x.shape[2] - side) // 2
    return x[:, top : top + side, left : left + side]


def standardise(x: torch.Tensor) -> torch.Tensor:
    """(3, H, W) in [0, 1] as CLIP reads it: minus the mean, over the standard deviation of each colour."""
    return (x - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
