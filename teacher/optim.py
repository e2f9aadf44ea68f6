"""The learning-rate schedule of both trainings."""

import math

import torch


def warmup_then_cosine(optimizer: torch.optim.Optimizer, train_steps: int, warmup: float = 0.04):
    """Linear warm-up over a share of the train steps, then a half cosine to zero."""

    def factor(step: int) -> float:
        progress = (step + 1) / train_steps
        return min(progress / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
