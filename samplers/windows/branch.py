"""One shared state, many actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.errors import WindowError
from samplers.windows.base import Choice, Window


@dataclass(frozen=True)
class Branch(Window):
    """A group shares its noise and its ODE path up to one step, parts there by its own actions, and goes on by ODE.

    The group's rewards then differ by that one action alone, and the policy gradient of the whole group is one
    backward pass through the shared state.

    Attributes:
        steps: Branching steps, taken in turn by the calls of a training step and rotated by the next one. Early steps
            decide what a picture holds; measure with `visalign doctor --snr`.

    Source: TempFlow-GRPO (arXiv 2508.04324), branching at one step; here with one backward per group.
    """

    steps: tuple[int, ...] = (0, 1, 1, 2)

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 0:
            raise WindowError(f"steps must be one or more indices >= 0, got {self.steps}")

    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        """Return the branching step of this call."""
        if max(self.steps) >= rounds - 1:
            raise WindowError(
                f"branching at step {max(self.steps)} needs more than {rounds} steps: the last has no noise"
            )
        k = self.steps[(step + chunk) % len(self.steps)]
        return Choice((k,), (k,), branch=True, eligible=self.steps)
