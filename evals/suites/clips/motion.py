"""Captions of things that move: the suite of the tiny video pipeline, judged exactly, with no copy of anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from evals.suites.base import Item, Suite
from reward_models.base import RewardModel
from reward_models.verifiers import motion
from reward_models.verifiers.movements import DIRECTIONS, Movement
from reward_models.verifiers.scenes import COLOURS, SHAPES


@dataclass(frozen=True)
class Motion(Suite):
    """Captions such as "a red circle moves left", judged by the reader of movements.

    Attributes:
        colours: Of the things that move; each comes in every shape and every direction.
    """

    colours: tuple[str, ...] = tuple(COLOURS)

    licence: ClassVar[str] = "made by a program"
    pictures: ClassVar[int] = 8

    def items(self) -> Sequence[Item]:
        """Return the captions; a category is a direction."""
        return [
            Item(Movement(colour, shape, direction).caption, direction)
            for colour in self.colours
            for shape in SHAPES
            for direction in DIRECTIONS
        ]

    def rewards(self) -> Mapping[str, RewardModel]:
        """Return the reader of movements."""
        return {"motion": motion.Motion(strict=1.0)}
