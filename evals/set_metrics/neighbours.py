"""Whether pictures lie where real ones lie, and whether all of those are reached, by nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROWS = 1024


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
    apart = distances(x, real)
    ball, own, wider = _radius(real, k), _radius(x, k), _radius(real, wide)
    within = apart <= wider[None]
    return Neighbours(
        precision=float((apart <= ball[None]).any(1).mean()),
        recall=float((apart <= own[:, None]).any(0).mean()),
        density=float(within.sum(1).mean() / wide),
        coverage=float((apart.min(0) <= wider).mean()),
    )


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of every pair, `[n, m]` float32."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    squares = (b**2).sum(1)
    rows = [
        np.sqrt(((part**2).sum(1)[:, None] + squares[None] - 2 * part @ b.T).clip(0)).astype(np.float32)
        for part in (a[start : start + _ROWS] for start in range(0, len(a), _ROWS))
    ]
    return np.concatenate(rows)


def _radius(x: np.ndarray, k: int) -> np.ndarray:
    """Return how far the k-th nearest other row is from each."""
    apart = distances(x, x)
    np.fill_diagonal(apart, 0.0)
    return np.partition(apart, k, axis=1)[:, k]
