"""What objectives share that learn from noised copies of clean samples, alone or against a frozen copy."""

from __future__ import annotations

from dataclasses import dataclass

from alignment.errors import ConfigError
from alignment.objectives.base import B_contra, Objective
from samplers.paths.times import Times


@dataclass(frozen=True)
class Noised(Objective[B_contra]):
    """A loss of noised copies of clean samples.

    Attributes:
        times: Distribution of the noised copies' times.
        points: Noised copies a row.
    """

    times: Times = Times()
    points: int = 1

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ConfigError(f"objective needs points >= 1, got {self.points}")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Compared(Noised[B_contra]):
    """A loss of errors compared with those of a frozen copy."""

    @property
    def frozen(self) -> str:
        """The frozen copy that errors are compared with."""
        return "reference"

    @property
    def snapshots(self) -> tuple[str, ...]:
        """That copy."""
        return (self.frozen,)
