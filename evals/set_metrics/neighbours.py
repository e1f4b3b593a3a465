"""Whether pictures lie where real ones lie, and whether all of those are reached, by nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROWS = 1024
"""Rows of a matrix of distances that are in memory together."""


@dataclass(frozen=True)
class Neighbours:
    """How two sets lie in each other.

    Attributes:
        precision: Share of pictures that lie among the real ones.
        recall: Share of the real ones that lie among the pictures.
        density: How many real ones each picture lies near to, over how many it may; above 1 where they crowd.
        coverage: Share of the real ones near to which there is a picture.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(x: np.ndarray, real: np.ndarray, k: int = 3, wide: int = 5) -> Neighbours:
    """Return how pictures lie among real ones.

    Args:
        x: `[n, d]`.
        real: `[m, d]`.
        k: How many neighbours make the ball around one, for precision and recall.
        wide: The same, for density and coverage.

    Source: Kynkaanniemi et al. (arXiv 1904.06991) with k = 3; Naeem et al. (arXiv 2002.09797) with k = 5.
    """
    (ball, wider), (own,) = _radii(real, (k, wide)), _radii(x, (k,))
    among, near, reached, nearest = [], [], np.zeros(len(real), bool), np.full(len(real), np.inf, np.float32)
    for start in range(0, len(x), _ROWS):  # a matrix of all pairs grows with the square of the pictures
        rows = slice(start, start + _ROWS)
        apart = distances(x[rows], real)
        among.append((apart <= ball).any(1))
        near.append((apart <= wider).sum(1))
        reached |= (apart <= own[rows, None]).any(0)
        nearest = np.minimum(nearest, apart.min(0))
    return Neighbours(
        precision=float(np.concatenate(among).mean()),
        recall=float(reached.mean()),
        density=float(np.concatenate(near).mean() / wide),
        coverage=float((nearest <= wider).mean()),
    )


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of every pair, `[n, m]` float32."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(squares.clip(0)).astype(np.float32)


def _radii(x: np.ndarray, ks: Sequence[int]) -> list[np.ndarray]:
    """Return for each k how far the k-th nearest other row is from each row."""
    found: list[list[np.ndarray]] = [[] for _ in ks]
    for start in range(0, len(x), _ROWS):
        apart = distances(x[start : start + _ROWS], x)
        own = np.arange(len(apart))
        apart[own, start + own] = 0.0
        for radii, k in zip(found, ks, strict=True):
            radii.append(np.partition(apart, k, axis=1)[:, k].copy())  # a view keeps the whole matrix
    return [np.concatenate(radii) for radii in found]
