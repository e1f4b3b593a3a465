"""How often one of several pictures is right: what choosing among them could reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BEST_OF = (1, 2, 4, 8)


def covered(right: np.ndarray, prompts: Sequence[int], k: int) -> np.ndarray:
    """Return for each prompt how likely one of k of its pictures is right, `[prompts]`; NaN where it has fewer than k.

    Without bias at any number of pictures: 1 - C(n - c, k) / C(n, k), with c right ones of n.

    Args:
        right: 1 or 0 of each picture; NaN where it was not scored.
        prompts: Number of each row's prompt, from 0 on.
        k: How many are made.

    Source: Chen et al. (arXiv 2107.03374), who call it pass@k.
    """
    known, member = ~np.isnan(right), np.asarray(prompts)
    found = []
    for prompt in range(max(prompts, default=-1) + 1):
        own = right[(member == prompt) & known]
        n, c = len(own), int(own.sum())
        found.append(math.nan if n < k else 1 - math.comb(n - c, k) / math.comb(n, k))
    return np.asarray(found)
