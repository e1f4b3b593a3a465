"""How varied pictures are: among those of one prompt, and all together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np


def pairwise(features: np.ndarray, prompts: Sequence[int], distance: Literal["cosine", "euclidean"]) -> np.ndarray:
    """Return the mean distance of two pictures of each prompt, `[prompts]`; NaN where a prompt has fewer than two.

    Args:
        features: `[n, d]`; rows with NaN are left out.
        prompts: Number of each row's prompt, from 0 on.
        distance: 1 - cosine, or the root of the mean squared difference.
    """
    known, member = ~np.isnan(features).any(1), np.asarray(prompts)
    found = []
    for prompt in range(max(prompts, default=-1) + 1):
        own = features[(member == prompt) & known].astype(np.float64)
        n = len(own)
        if n < 2:
            found.append(math.nan)
        elif distance == "cosine":
            total = own / np.linalg.norm(own, axis=1, keepdims=True).clip(1e-12)
            found.append(1 - float((total.sum(0) ** 2).sum() - n) / (n * (n - 1)))
        else:
            squares = (own**2).sum(1)
            apart = np.sqrt((squares[:, None] + squares[None] - 2 * own @ own.T).clip(0) / own.shape[1])
            np.fill_diagonal(apart, 0.0)
            found.append(float(apart.sum()) / (n * (n - 1)))
    return np.asarray(found)


def vendi(features: np.ndarray) -> float:
    """Return how many pictures that have nothing in common would be as varied: 1 for copies, n at most.

    It grows with n, so it is comparable at equal numbers only.

    Args:
        features: `[n, d]`; similarity is the cosine.

    Source: Friedman and Dieng (arXiv 2210.02410).
    """
    x = features.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    shares = np.linalg.svd(x, compute_uv=False) ** 2 / len(x)
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))
