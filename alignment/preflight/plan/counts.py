"""What a rehearsed step is found to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignment.preflight.plan.meter import Cost


@dataclass(frozen=True)
class Event:
    """One round of one pipeline call in which the denoiser runs.

    Attributes:
        phase: "rollout" or "update".
        rows: Rows of the call.
        cost: Of all rows.
        grad: Whether a backward pass is part of it.
        networks: Those of the trained networks that are called in it, once a call.
    """

    phase: str
    rows: int
    cost: Cost
    grad: bool
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Called:
    """One pipeline call.

    Attributes:
        phase: "rollout" or "update".
        rows: Its rows.
        decodes: Whether it decodes to pixels.
    """

    phase: str
    rows: int
    decodes: bool


@dataclass(frozen=True)
class Around:
    """What a call costs before or after its denoising loop.

    Attributes:
        one: With one row.
        two: With two rows; some encode a picture once for all rows, some decode row by row.
    """

    one: Cost
    two: Cost

    def of(self, rows: int) -> Cost:
        """Return the cost with any number of rows."""
        more = rows - 1
        return Cost(
            self.one.flops + more * (self.two.flops - self.one.flops),
            self.one.bytes + more * (self.two.bytes - self.one.bytes),
        )


@dataclass(frozen=True)
class StepCounts:
    """What one step of one process takes.

    Attributes:
        events: Rounds in which the denoiser runs.
        calls: Every call of the pipeline.
        encoded: How many prompts brought different pictures: each is encoded once a step at most.
        scored: Samples scored.
        kept: Bytes of experience kept from rollout to update.
    """

    events: Sequence[Event]
    calls: Sequence[Called]
    encoded: int
    scored: int
    kept: int
