"""How much of one colour a picture has: a dense, differentiable reward for trying things out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards, Size

_CHANNELS = ("red", "green", "blue")
_WHITE = "white"
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Colour(RewardModel):
    """Score the mean over all pixels of (one channel - half the sum of the other two), in [-1, 1]; of all for white.

    Any picture has a score and any change of a pixel moves it, so training on it shows within seconds whether the
    gradient points the right way. The prompt is not read.

    Attributes:
        channel: "red", "green" or "blue"; "white" scores brightness, the mean of all three, in [0, 1].
    """

    channel: str = "red"

    differentiable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.channel not in (*_CHANNELS, _WHITE):
            raise RewardError(f"colour: channel is one of {', '.join((*_CHANNELS, _WHITE))}, got {self.channel!r}")

    def known_answers(self) -> tuple[KnownAnswer]:
        """Return pictures of one colour each, whose scores are exact, and grey."""
        pixels = torch.cat([torch.eye(3), torch.full((1, 3), 0.5)])[:, None, :, None, None].expand(-1, 1, -1, 8, 8)
        if self.channel == _WHITE:
            scores = [1 / 3, 1 / 3, 1 / 3, 0.5]
        else:
            scores = [*(1.0 if name == self.channel else -0.5 for name in _CHANNELS), 0.0]
        bands = tuple((score - _ROUNDING, score + _ROUNDING) for score in scores)
        return (KnownAnswer(f"{self.channel} in red, green, blue and grey", Media(pixels), ("",) * 4, bands),)

    def size(self) -> Size:
        """Nothing: there is no network."""
        return Size()

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def reads_prompts(self) -> bool:
        """No: it looks at the sample alone."""
        return False

    def load(self, *, device: torch.device) -> _ColourScorer:
        """Return the scorer; it works where the pixels are."""
        return _ColourScorer(None if self.channel == _WHITE else _CHANNELS.index(self.channel))


@dataclass(frozen=True)
class _ColourScorer:
    channel: int | None

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; gradients reach its pixels."""
        means = media.pixels.float().mean((1, 3, 4))
        if self.channel is None:
            return Rewards(means.mean(1))
        return Rewards(1.5 * means[:, self.channel] - 0.5 * means.sum(1))
