"""What a reward is: the types every scorer shares.

Conventions, said once: pixels are float in [0, 1]; a picture is a clip of one frame; larger is better; scores are
float32; the score of a batch is the scores of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor


class RewardError(RuntimeError):
    """A scorer failed, or answered something that is not a score."""


@dataclass(frozen=True)
class Media:
    """Pictures or clips as the pipeline made them.

    Attributes:
        pixels: `[B, F, 3, H, W]` in [0, 1]; F = 1 for pictures.
        fps: Frames a second of a clip; None for pictures.
    """

    pixels: Tensor
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 5 or self.pixels.shape[2] != 3:
            raise RewardError(f"media need pixels [B, F, 3, H, W], got {tuple(self.pixels.shape)}")

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Media:
        return replace(self, pixels=self.pixels[rows])


@dataclass(frozen=True)
class Rewards:
    """Scores of a batch.

    Attributes:
        value: `[B]` float32. NaN marks a sample that could not be scored: credit leaves it out and counts it; it is
            never given a number in place of a score.
        parts: The named scores `value` was made of, each `[B]`; for curves, never for credit.
    """

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, score in {"value": self.value, **self.parts}.items():
            if score.ndim != 1 or score.shape != self.value.shape or score.dtype != torch.float32:
                raise RewardError(
                    f"a reward is a float32 vector, one number a sample: {name} is {score.dtype} {tuple(score.shape)}"
                )
            if torch.isinf(score).any():
                raise RewardError(
                    f"{name} has infinite scores at rows {torch.isinf(score).nonzero().flatten().tolist()}"
                )


@runtime_checkable
class Scorer(Protocol):
    """A loaded reward model."""

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; `prompts` has one text a row."""
        ...


@runtime_checkable
class RewardModel(Protocol):
    """A light, frozen description of a reward model; `load` makes the heavy object.

    The file `reward_models/NAME.py` holds the class that a config calls `type: NAME`.
    """

    home: ClassVar[str] = "reward_models"
    differentiable: ClassVar[bool]

    def load(self, *, device: torch.device) -> Scorer:
        """Return the scorer on `device`."""
        ...

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what can be seen not to work before anything is loaded; nothing, unless a model knows better.

        Args:
            prompts: Texts that will be scored; none where only the description itself is looked at.

        Raises:
            RewardError: Saying what cannot be scored.
        """

    def __str__(self) -> str:
        """Return the name under which messages speak of it."""
        return type(self).__name__
