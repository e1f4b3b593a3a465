"""The maximum mean discrepancy of two sets of features: KID with a cubic kernel, CMMD with a Gaussian one.

Neither takes the features for Gaussians, and the cubic one has no bias at any number of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from alignment.reports.statistics import Interval, over_runs

_BLOCKS = 10
"""Of pictures, each with an estimate of its own, for the interval."""
_BANDWIDTH = 10.0
_SCALE = 1000.0
_ROWS = 2048
"""Rows of a kernel matrix that are in memory together."""

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def discrepancy(x: np.ndarray, y: np.ndarray, kernel: Literal["cubic", "gaussian"], seed: int = 0) -> Interval:
    """Return KID ("cubic", times 1000) or CMMD ("gaussian", times 1000) of two sets, with a 95 % interval.

    KID is the mean over blocks of both sets, each without bias; CMMD is taken over all pictures, as its authors do, and
    its interval from the blocks' spread.

    Args:
        x: `[n, d]`.
        y: `[m, d]`.
        kernel: Which.
        seed: Of the order in which pictures are laid in blocks.

    Source: Binkowski et al. (arXiv 1801.01401); Jayasumana et al. (arXiv 2401.09603).
    """
    draw = np.random.default_rng(seed)
    a, b = (z[draw.permutation(len(z))].astype(np.float64) for z in (x, y))
    blocks = zip(np.array_split(a, _BLOCKS), np.array_split(b, _BLOCKS), strict=True)
    if kernel == "cubic":
        found = over_runs([_SCALE * unbiased(one, other, cubic) for one, other in blocks])
        return Interval(found.mean, found.low, found.high, len(x))
    a, b = unit(a), unit(b)
    whole = _SCALE * biased(a, b, gaussian)
    each = [_SCALE * unbiased(unit(one), unit(other), gaussian) for one, other in blocks]
    spread = over_runs(each)
    half = (spread.high - spread.low) / 2
    return Interval(whole, whole - half, whole + half, len(x))


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return `(x y / d + 1)^3` of every pair, `[n, m]`."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return `exp(-|x - y|^2 / (2 10^2))` of every pair, `[n, m]`."""
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.exp(-squares.clip(0) / (2 * _BANDWIDTH**2))


def unbiased(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    """Return the discrepancy without bias: no row is compared with itself."""
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return math.nan
    own = sum((_sum(z, z, kernel) - _diagonal(z, kernel)) / (len(z) * (len(z) - 1)) for z in (x, y))
    return own - 2 * _sum(x, y, kernel) / (n * m)


def biased(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    """Return the discrepancy over all pairs, which is never below zero."""
    return sum(_sum(z, z, kernel) / len(z) ** 2 for z in (x, y)) - 2 * _sum(x, y, kernel) / (len(x) * len(y))


def unit(x: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def _sum(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    return float(sum(kernel(x[start : start + _ROWS], y).sum() for start in range(0, len(x), _ROWS)))


def _diagonal(x: np.ndarray, kernel: Kernel) -> float:
    return float(sum(kernel(row[None], row[None])[0, 0] for row in x))
