"""Score one region of a picture: where a face, a caption or a known defect is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reward_models.base import (
    Loaded,
    Media,
    RewardError,
    RewardModel,
    Rewards,
    Scope,
    load_reward,
    require_reward_model,
)
from reward_models.combinators.inner import AroundAnother


@dataclass(frozen=True)
class Cropped(AroundAnother):
    """Score a rectangle of each sample, the same for all, with another reward.

    Pixels whose middle lies in the box are seen. What samples were made from is passed on whole.

    Attributes:
        reward: What scores.
        box: left, top, right, bottom, as shares of the width and the height, from 0 to 1.
    """

    reward: RewardModel
    box: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        require_reward_model(self.reward)
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise RewardError(
                f"cropped: box is left, top, right, bottom from 0 to 1, left < right and top < bottom; got {self.box}"
            )

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether gradients reach the pixels of the box through what scores."""
        return self.reward.differentiable

    @property
    def scope(self) -> Scope:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """The scope of the inner reward."""
        return self.reward.scope

    def load(self, *, device: torch.device) -> _CroppedScorer:
        """Load the reward."""
        return _CroppedScorer(self.box, load_reward(self.reward, device=device))


@dataclass(frozen=True)
class _CroppedScorer:
    box: tuple[float, float, float, float]
    loaded: Loaded

    @property
    def inner(self) -> tuple[Loaded]:
        """What scores."""
        return (self.loaded,)

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor | None = None) -> Rewards:
        """Score the box.

        Raises:
            RewardError: If no pixel lies in it.
        """
        height, width = media.pixels.shape[-2:]
        left, top, right, bottom = self.box
        rows, columns = inside(top, bottom, height), inside(left, right, width)
        seen = media.pixels[..., rows, columns]
        if not seen.shape[-1] * seen.shape[-2]:
            raise RewardError(f"cropped: the box {self.box} holds no pixel of {height} x {width}")
        return self.loaded(media=replace(media, pixels=seen), prompts=prompts, group=group)


def inside(low: float, high: float, size: int) -> slice:
    """Return which of `size` pixels have their middle between two shares of a side."""
    return slice(math.ceil(low * size - 0.5), math.ceil(high * size - 0.5))
