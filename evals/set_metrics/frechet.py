"""Frechet's distance between two sets of features, taken as Gaussians: FID, FD-DINOv2 and FVD, by the features.

With few pictures it is too large, by an amount that differs from generator to generator, so that a plain distance is
comparable at equal numbers only. The bias falls with 1/n, and the distance at infinitely many pictures is read from
distances at several numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from alignment.reports.statistics import Interval, over_runs

FEWEST = 64
"""Pictures below which no distance is told."""
_PARTS = (1, 2, 4)
"""In how many equal parts the pictures are laid, to see how the distance falls with their number."""
_GROUPS = 10
"""Of pictures, left out one after the other for the interval."""


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Return the squared distance of the Gaussians of two sets, `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`.

    Args:
        x: `[n, d]`.
        y: `[m, d]`.

    Source: Heusel et al. (arXiv 1706.08500). The trace of the root is the sum of the singular values of `f1 @ f2.T`,
        where `f.T @ f` is a covariance: nothing is inverted, and few pictures cost little.
    """
    return _distance(_Gaussian.of(x), _Gaussian.of(y))


def gaussian_distance(mean: np.ndarray, cov: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Return the same distance of two Gaussians whose means `[d]` and covariances `[d, d]` are known."""
    one, other = (_Gaussian(m, float(np.trace(c)), _root(c)) for m, c in ((mean, cov), (mean2, cov2)))
    return _distance(one, other)


def extrapolated(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Interval:
    """Return the distance at infinitely many pictures in place of `x`, with a 95 % interval.

    The distance is taken at all pictures, at halves and at quarters, and is a line in 1/n; its end is what is wanted.
    The interval is a jackknife's over groups of pictures, with Student's quantile. Pictures of one prompt should be
    spread over `x` as they were made, sample by sample. What few pictures in `y` do stays in: it is the same for all
    that are compared with them.

    Args:
        x: `[n, d]`, at least `FEWEST`.
        y: `[m, d]`.
        seed: Of the order in which pictures are laid in parts.

    Source: Chong and Forsyth (arXiv 1911.07023), who take random numbers of pictures.
    """
    order, real = np.random.default_rng(seed).permutation(len(x)), _Gaussian.of(y)
    whole = _limit(x[order], real)
    groups = np.array_split(order, _GROUPS)
    left = [_limit(x[np.setdiff1d(order, group, assume_unique=True)], real) for group in groups]
    # A jackknife's pseudo-values are as good as independent estimates.
    return Interval(whole, *_ends(whole, [_GROUPS * whole - (_GROUPS - 1) * one for one in left]), len(x))


def _ends(whole: float, values: list[float]) -> tuple[float, float]:
    found = over_runs(values)
    half = (found.high - found.low) / 2
    return whole - half, whole + half


def _limit(x: np.ndarray, real: _Gaussian) -> float:
    """Return where the line of distances over 1/n ends."""
    at, found = [], []
    for parts in _PARTS:
        chunks = np.array_split(x, parts)
        if len(chunks[-1]) < 2:
            break
        at.append(float(np.mean([1 / len(chunk) for chunk in chunks])))
        found.append(float(np.mean([_distance(_Gaussian.of(chunk), real) for chunk in chunks])))
    return float(np.polyfit(at, found, 1)[1])


@dataclass(frozen=True)
class _Gaussian:
    """What a distance asks of a set: mean, trace of the covariance, and `f` with `f.T @ f` the covariance."""

    mean: np.ndarray
    trace: float
    factor: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> _Gaussian:
        z = x.astype(np.float64)
        mean = z.mean(0)
        z = (z - mean) / math.sqrt(len(z) - 1)
        factor = np.asarray(np.linalg.qr(z, mode="r")) if z.shape[0] > z.shape[1] else z
        return cls(mean, float((factor**2).sum()), factor)


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    return float(((a.mean - b.mean) ** 2).sum()) + a.trace + b.trace - 2 * _nuclear(a.factor, b.factor)


def _nuclear(a: np.ndarray, b: np.ndarray) -> float:
    """Return the sum of the singular values of `a @ b.T`."""
    return float(np.linalg.svd(a @ b.T, compute_uv=False).sum())


def _root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    return np.sqrt(values.clip(0))[:, None] * vectors.T
