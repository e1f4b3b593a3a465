"""A few random steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.errors import WindowError
from samplers.windows.base import Choice, Window, pick, trainable_rounds


@dataclass(frozen=True)
class Random(Window):
    """`size` random steps are stochastic and trained; the others are ODE steps (Flow-GRPO-Fast).

    The steps are drawn from all; flow_grpo's own Fast recipes draw a run from the first half (`contiguous: true` with
    `among`).

    Attributes:
        size: Steps in the window, >= 1.
        among: Steps to draw from; null means all.
        contiguous: Draw a run of neighbouring steps, not any subset.
        drop_last: Leave the last step out.
    """

    size: int = 2
    among: tuple[int, ...] | None = None
    contiguous: bool = False
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise WindowError(f"size must be >= 1, got {self.size}")

    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        """Return `size` random steps."""
        steps = trainable_rounds(rounds, self.drop_last)
        if self.among is not None:
            steps = [k for k in steps if k in self.among]
        if len(steps) < self.size:
            raise WindowError(f"a window of {self.size} steps cannot be drawn from {len(steps)} eligible ones {steps}")
        if not self.contiguous:
            chosen = pick(steps, self.size, generator)
            return Choice(chosen, chosen, eligible=tuple(steps))
        runs = [tuple(steps[start : start + self.size]) for start in range(len(steps) - self.size + 1)]
        chosen = runs[int(torch.randint(len(runs), (1,), generator=generator))]
        return Choice(chosen, chosen, eligible=sum(runs, ()))
