"""Gradients in float16 vanish below 6e-8: losses are multiplied by a power of two, and gradients divided by it."""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 1.0
PATIENCE = 2000
"""Sound updates after which a larger factor is tried, as torch's own scaler has it."""


@dataclass
class Scale:
    """The factor now: half of it after an update whose gradients were not finite, twice after many that were.

    Attributes:
        factor: A power of two, so that nothing is rounded by it.
        sound: Updates since it last changed.
    """

    factor: float = 2.0**16
    sound: int = 0

    @property
    def least(self) -> bool:
        """Whether it cannot get smaller: gradients that are not finite are then not its fault."""
        return self.factor <= LEAST

    def learned(self, *, finite: bool) -> None:
        """Take note of an update."""
        self.sound += 1
        if not finite:
            self.factor, self.sound = max(self.factor / 2, LEAST), 0
        elif self.sound == PATIENCE:
            self.factor, self.sound = 2 * self.factor, 0
