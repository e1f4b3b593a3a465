"""What verifiers of drawn media share: captions of a language, frames of 32 pixels, a weight for all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor
from torch.nn.functional import avg_pool2d

from reward_models.base import RewardError
from reward_models.verifiers.scenes import SIDE

T = TypeVar("T")


def check_strict(name: str, strict: float) -> None:
    """Refuse what is not a weight of the all-or-nothing score.

    Raises:
        RewardError: Naming it.
    """
    if not 0 <= strict <= 1:
        raise RewardError(f"{name}: strict is a weight in [0, 1], got {strict}")


def understood(name: str, parse: Callable[[str], T], prompts: Sequence[str]) -> list[T]:
    """Return what each prompt asks for.

    Raises:
        RewardError: If one is not in the language.
    """
    try:
        return [parse(prompt) for prompt in prompts]
    except ValueError as error:
        raise RewardError(f"{name} can only judge captions of its own language: {error}") from error


def levels(name: str, pixels: Tensor) -> np.ndarray:
    """Return `[B, F, 32, 32, 3]` uint8 of pixels `[B, F, 3, H, W]` in [0, 1]; larger frames are averaged down.

    Raises:
        RewardError: If frames are not square, or their side is not a multiple of 32.
    """
    height, width = pixels.shape[-2:]
    if height != width or height % SIDE:
        raise RewardError(f"{name} reads square pictures of {SIDE} pixels or a multiple, got {height} x {width}")
    small = avg_pool2d(pixels.detach().flatten(0, 1).float(), height // SIDE).unflatten(0, pixels.shape[:2])
    return (small * 255).round().clamp(0, 255).byte().permute(0, 1, 3, 4, 2).cpu().numpy()
