"""Scores that came in pieces, in the order of the samples again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_models.base import Rewards


def put_together(pieces: Sequence[tuple[Tensor, Rewards]], count: int, device: torch.device) -> Rewards:
    """Return the scores of `count` samples; NaN for a sample in no piece, and in a part that its piece lacks.

    Args:
        pieces: (rows, their scores).
        count: Samples.
        device: Where the scores go.
    """
    names = dict.fromkeys(name for _, rewards in pieces for name in rewards.parts)
    columns = {name: torch.full((count,), torch.nan, device=device) for name in ("", *names)}
    for rows, rewards in pieces:
        for name, column in {"": rewards.value, **rewards.parts}.items():
            columns[name][rows] = column.to(device)
    return Rewards(columns[""], {name: columns[name] for name in names})
