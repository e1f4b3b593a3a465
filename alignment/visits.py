"""The times that a pipeline is offered where it visits states of one's own making."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samplers.path import Path
from samplers.row_times import RowTimes

APART = 2.0**-7
"""How far a time that nobody looks at is below the next one, as a share of it."""


def times_offered(path: Path, times: Sequence[Tensor], before: int, after: int) -> Tensor:
    """Return network times for visits at `times`, and for rounds around them in which nobody looks at the network.

    No time comes twice in a row because of those rounds: some pipelines leave out a step that would arrive where it
    left.

    Args:
        path: The forward process.
        times: For each visit the time of each row, `[B]` in [0, 1].
        before: Rounds before the first visit.
        after: Rounds after the last.

    Returns:
        `[R]`, one time a round, as a pipeline knows it from its own scheduler; `[R, B]` where rows differ.
    """

    def falling(t: Tensor, count: int) -> list[Tensor]:
        return [t * (1 - APART) ** (k + 1) for k in range(count)]

    every = [*falling(times[0], before), *times, *falling(times[-1], after)]
    offered = torch.stack([path.network_time(t) for t in every])
    return offered[:, 0] if bool((offered == offered[:, :1]).all()) else offered.as_subclass(RowTimes)
