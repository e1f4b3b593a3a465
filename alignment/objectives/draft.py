"""DRaFT: climb the reward through the last steps of sampling."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.context import Context
from alignment.errors import ConfigError
from alignment.objectives._direct import Direct


@dataclass(frozen=True)
class DRaFT(Direct):
    """L = -r(x_0), with a graph through the last `last` steps of sampling, the decoder and the scorer.

    A reward that can be climbed this fast is soon over-optimised: hold something out that measures what is wanted, and
    stop early.

    Attributes:
        last: Steps with a graph; memory grows with it. All of them is the untruncated method.

    Source: DRaFT (arXiv 2309.17400), DRaFT-K with K = `last`. Its low-variance form, which noises x_0 again several
    times, is not offered.
    """

    last: int = 1

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ConfigError(f"last must be >= 1, got {self.last}")

    def check_rounds(self, rounds: int) -> None:
        """Refuse more steps with a graph than there are."""
        if self.last > rounds:
            raise ConfigError(f"last: {self.last} steps are to have a graph, but a call takes {rounds}")

    def first(self, ctx: Context) -> int:
        """Return the round before which the graph ends."""
        self.check_rounds(ctx.policy.rounds)
        return ctx.policy.rounds - self.last
