"""A window that moves from high noise to low noise as training goes on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.errors import WindowError
from samplers.windows.base import Choice, Window, trainable_rounds


@dataclass(frozen=True)
class Sliding(Window):
    """MixGRPO's progressive window: its left edge advances by `stride` every `every` training steps, then starts again.

    Attributes:
        size: Steps in the window.
        stride: Steps the left edge advances.
        every: Training steps between advances.
        drop_last: Leave the last step out.

    Source: MixGRPO (arXiv 2507.21802), section 3; their window is 4 of 25 steps, moved every 25 iterations. At the
    right edge theirs may be empty; here the last position always holds a full window.
    """

    size: int = 4
    stride: int = 1
    every: int = 25
    drop_last: bool = True

    def __post_init__(self) -> None:
        if min(self.size, self.stride, self.every) < 1:
            raise WindowError(f"size, stride and every must be >= 1, got {self.size}, {self.stride}, {self.every}")

    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        """Return the window at this training step."""
        steps = trainable_rounds(rounds, self.drop_last)
        if len(steps) < self.size:
            raise WindowError(f"a window of {self.size} steps does not fit into {len(steps)} eligible ones")
        edges = [*range(0, len(steps) - self.size, self.stride), len(steps) - self.size]
        left = edges[(step // self.every) % len(edges)]
        chosen = tuple(steps[left : left + self.size])
        return Choice(chosen, chosen, eligible=tuple(k for edge in edges for k in steps[edge : edge + self.size]))
