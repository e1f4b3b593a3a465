"""All steps stochastic, a random share of them trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.errors import WindowError
from samplers.windows.base import Choice, Window, pick, trainable_rounds


@dataclass(frozen=True)
class Fraction(Window):
    """DanceGRPO's timestep fraction: int((N - 1) fraction) random steps are trained.

    The authors draw the subset for each sample; here one pipeline call shares it, so that a replay runs the denoiser
    only in those rounds. The estimator's mean is the same.

    Attributes:
        fraction: Share of the eligible steps, in (0, 1].
        drop_last: Leave the last step out.
    """

    fraction: float = 0.6
    drop_last: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise WindowError(f"fraction must lie in (0, 1], got {self.fraction}")

    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        """Return all steps as stochastic, a random subset as trained."""
        steps = trainable_rounds(rounds, self.drop_last)
        count = int(len(steps) * self.fraction)
        if count == 0:
            raise WindowError(f"int({len(steps)} steps x fraction {self.fraction}) = 0: no step would be trained")
        return Choice(tuple(steps), pick(steps, count, generator), eligible=tuple(steps))
