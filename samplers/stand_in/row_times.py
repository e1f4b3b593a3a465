"""Times of their own for the rows of one pipeline call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


class RowTimes(Tensor):
    """A time per row, `[B]`, where a pipeline expects one number.

    Batched guidance stacks the rows of a call twice or more, and asks for its time `expand`ed to as many; the times
    then repeat, as the rows do.
    """

    def expand(self, *sizes: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the times repeated to `[m B]`; other sizes are torch's business."""
        flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple | torch.Size) else sizes
        if self.ndim == 1 and len(flat) == 1 and flat[0] > len(self) and flat[0] % len(self) == 0:
            return self.repeat(flat[0] // len(self))
        return super().expand(*sizes)


def plainly(given: Any) -> Any:
    """Return a network's arguments with plain tensors for times, as many of them as there are rows."""
    leaves = tree_leaves(given)
    if not any(isinstance(leaf, RowTimes) for leaf in leaves):
        return given
    rows = next((len(z) for z in leaves if isinstance(z, Tensor) and not isinstance(z, RowTimes) and z.ndim > 1), 0)

    def plain(times: RowTimes) -> Tensor:
        repeated = times.expand(rows) if times.ndim == 1 and rows else times
        return repeated.as_subclass(Tensor)

    return tree_map_only(RowTimes, plain, given)
