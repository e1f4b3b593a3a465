"""Every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.windows.base import Choice, Window, trainable_rounds


@dataclass(frozen=True)
class All(Window):
    """Every step is stochastic and trained.

    Attributes:
        drop_last: Leave the last step out (it becomes an ODE step).
    """

    drop_last: bool = True

    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        """Return all steps but, by default, the last."""
        steps = tuple(trainable_rounds(rounds, self.drop_last))
        return Choice(steps, steps)
