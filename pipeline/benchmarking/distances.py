"""FID and KID: distances between two sets of images over the features of an `Extractor`.

Both take features, not images, so that features are computed once for all distances.
"""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.scores import frechet
from pipeline.evaluation.scores.retention import LEVEL, Estimate


def fid(features: np.ndarray, reference: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features, unscaled (Heusel et al. 2017).

    Args:
        features: (N, D).
        reference: (M, D).

    Raises:
        ValueError: A set has fewer than two rows or a value that is not finite, or the numbers of features differ.
    """
    features, reference = _checked("fid", features, reference)
    return frechet.between(frechet.fitted(features), frechet.fitted(reference))


def kid(features: np.ndarray, reference: np.ndarray, subset: int, subsets: int, seed: int) -> tuple[float, float]:
    """Kernel distance of two sets of features, with the kernel (x y / D + 1)^3 (Binkowski et al. 2018).

    This is the unbiased estimate of MMD^2, which can be slightly below 0 for similar sets. torch-fidelity draws the
    same subsets with the same seed.

    Args:
        features: (N, D).
        reference: (M, D).
        subset: Rows of each set in a subset.
        subsets: How many pairs of subsets.
        seed: Seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets, unscaled.

    Raises:
        ValueError: As `fid` does; or a set has fewer rows than a subset needs.
    """
    features, reference = _checked("kid", features, reference)
    fewest = min(len(features), len(reference))
    if not 2 <= subset <= fewest or subsets < 1:
        raise ValueError(
            f"kid needs subsets of 2 to {fewest} rows, the size of the smaller set, got {subsets} of {subset} rows"
        )
    generator = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        x = features[generator.choice(len(features), subset, replace=False)]
        y = reference[generator.choice(len(reference), subset, replace=False)]
        within = sum(kernel.sum() - np.trace(kernel) for kernel in (_kernel(x, x), _kernel(y, y)))
        values.append(within / (subset * (subset - 1)) - 2 * _kernel(x, y).mean())
    return float(np.mean(values)), float(np.std(values))


def fid_difference(
    arm: np.ndarray, teacher: np.ndarray, reference: np.ndarray, *, subsamples: int = 20, seed: int
) -> Estimate:
    """FID of an arm minus FID of the teacher, to the same reference, with a subsampling interval.

    The interval is centred on the difference over all prompts. Its width is the spread of the difference over random
    halves of the prompts, the same half for both. A half drawn without replacement from n prompts has the variance of n
    new prompts, so the spread needs no factor. A bootstrap would be wrong, since repeated images raise FID.

    Args:
        arm: (N, D), one row for a prompt.
        teacher: (N, D), for the same prompts in the same order.
        reference: (M, D).
        subsamples: How many halves.
        seed: Seed of the halves.

    Raises:
        ValueError: As `fid` does; or the arm and the teacher differ in size, or have too few rows for halves.
    """
    arm, target = _checked("fid", arm, reference)
    teacher, target = _checked("fid", teacher, reference)
    if len(arm) != len(teacher) or len(arm) < 4 or subsamples < 2:
        raise ValueError(
            "a paired difference of FID needs the same 4 or more prompts for the arm and the teacher and 2 or more"
            f" subsamples, got {len(arm)} and {len(teacher)} prompts and {subsamples} subsamples"
        )
    goal = frechet.fitted(target)

    def difference(rows: np.ndarray | slice) -> float:
        own, other = frechet.fitted(arm[rows]), frechet.fitted(teacher[rows])
        return frechet.between(own, goal) - frechet.between(other, goal)

    generator = np.random.default_rng(seed)
    halves = [generator.choice(len(arm), len(arm) // 2, replace=False) for _ in range(subsamples)]
    value, spread = difference(slice(None)), np.array([difference(half) for half in halves])
    low, high = np.quantile(spread - spread.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(value + low), float(value + high))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _checked(name: str, *sets: np.ndarray) -> list[np.ndarray]:
    if {rows.ndim for rows in sets} != {2} or len({rows.shape[1] for rows in sets}) != 1 or min(map(len, sets)) < 2:
        shapes = " and ".join(str(rows.shape) for rows in sets)
        raise ValueError(f"{name} needs two sets of 2 or more rows with the same features, got the shapes {shapes}")
    if not all(np.isfinite(rows).all() for rows in sets):
        raise ValueError(f"{name} needs features that are finite, got NaN or infinity")
    return [rows.astype(np.float64) for rows in sets]
