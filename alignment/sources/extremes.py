"""Learning only from the best and the worst samples of a group."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from alignment.data.batches import B, Transitions
from alignment.errors import ConfigError


def check_keep(keep: int | None, group_size: int) -> None:
    """Refuse a number of samples that is not half best and half worst.

    Raises:
        ConfigError: With what it has to be.
    """
    if keep is not None and (keep < 2 or keep % 2 or keep > group_size):
        raise ConfigError(
            f"keep has to be an even number from 2 to group_size {group_size}, half of it for the best samples of a "
            f"group and half for the worst, got {keep}; null learns from all"
        )


def extremes(batch: B, credit: Tensor, group_size: int, keep: int | None) -> B:
    """Return the keep / 2 best and the keep / 2 worst samples of each group.

    Args:
        batch: Rows group by group: one per sample, or one per group with one action per sample.
        credit: `[B]` or `[B, *map]`, one per sample, group by group; the mean of a map counts.
        group_size: Samples in a group.
        keep: Samples left of each; None keeps all.
    """
    if keep is None or keep == group_size:
        return batch
    order = credit.flatten(1).mean(dim=1) if credit.ndim > 1 else credit
    order = order.reshape(-1, group_size).argsort(dim=1, stable=True)
    kept = torch.cat([order[:, : keep // 2], order[:, group_size - keep // 2 :]], dim=1).sort(dim=1).values
    if isinstance(batch, Transitions) and batch.actions == group_size:
        rows = torch.arange(len(batch))[:, None]
        x_next = batch.x_next.transpose(1, 2)[rows, kept.to(batch.x_next.device)].transpose(1, 2)
        return replace(batch, x_next=x_next, advantage=batch.advantage[rows, kept])
    return batch[(kept + group_size * torch.arange(len(kept))[:, None]).flatten()]
