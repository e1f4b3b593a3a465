"""Numbers for the record, averaged over the pieces of an update and over processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from alignment.world import World


class Averages:
    """Means, or extremes where a name ends in `_max`, `_min`, `/max` or `/min`, of numbers that come in pieces."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add pieces of any shape."""
        for name, value in metrics.items():
            self._pieces[name].append(value.flatten().float())

    def take(self, world: World) -> dict[str, float]:
        """Return the numbers over all processes, and forget the pieces.

        Processes may know different names: which steps are trained depends on the pipeline call.
        """
        mine = {name: _summary(name, torch.cat(pieces).double()) for name, pieces in self._pieces.items() if pieces}
        self._pieces.clear()
        everyone = world.everyone(mine)
        names = sorted({name for one in everyone for name in one})
        return {name: _join(name, [one[name] for one in everyone if name in one]) for name in names}


def _summary(name: str, piece: Tensor) -> tuple[float, int]:
    """Return (extreme, 1) or (sum, count)."""
    match name[-4:]:
        case "_max" | "/max":
            return piece.max().item(), 1
        case "_min" | "/min":
            return piece.min().item(), 1
        case _:
            return piece.sum().item(), len(piece)


def _join(name: str, summaries: list[tuple[float, int]]) -> float:
    """Return one number of the summaries of several processes; NaN anywhere is NaN."""
    values, counts = torch.tensor(summaries, dtype=torch.float64).unbind(dim=1)
    match name[-4:]:
        case "_max" | "/max":
            return values.max().item()
        case "_min" | "/min":
            return values.min().item()
        case _:
            return (values.sum() / counts.sum()).item()
