"""What a scorer looks at before it looks at pictures: shapes, ranges and prompts, refused with one message each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from reward_models.base import Media, RewardError

LONGEST_PROMPT = 5_000
"""Characters. No text encoder here reads as many; what is longer is a file given by mistake."""

_OUTSIDE = 1e-3
"""How far a pixel may lie outside [0, 1]: half-precision decoders overshoot by less."""


def check_prompts(name: str, prompts: Sequence[object]) -> None:
    """Refuse prompts that are empty or cannot be meant.

    Args:
        name: Who refuses.
        prompts: Texts that the scores depend on.

    Raises:
        RewardError: Naming the first offender.
    """
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise RewardError(f"{name}: prompt {row} is a {type(prompt).__name__}, expected a text")
        if not prompt.strip():
            raise RewardError(f"{name} scores how a picture fits its prompt, and prompt {row} is empty")
        if len(prompt) > LONGEST_PROMPT:
            raise RewardError(
                f"{name}: prompt {row} has {len(prompt)} characters, at most {LONGEST_PROMPT} are taken; it begins "
                f"{prompt[:40]!r}. Shorten it"
            )


def check_media(name: str, media: Media, prompts: Sequence[str], *, least: int = 1) -> None:
    """Refuse pixels that are not numbers in [0, 1], pictures that are too small, and a wrong number of prompts.

    Args:
        name: Who refuses.
        media: The samples.
        prompts: One text per sample.
        least: Pixels a side needs.

    Raises:
        RewardError: Saying what was got.
    """
    pixels = media.pixels
    if len(prompts) != len(media):
        raise RewardError(f"{name} was given {len(media)} samples and {len(prompts)} prompts; one each is needed")
    if not pixels.is_floating_point():
        raise RewardError(f"{name} takes pixels as floating-point numbers in [0, 1], got {pixels.dtype}; divide by 255")
    if pixels.numel() == 0:
        raise RewardError(f"{name} was given pictures without pixels: {tuple(pixels.shape)}")
    if min(pixels.shape[-2:]) < least:
        raise RewardError(f"{name} needs sides of at least {least} pixels, got {tuple(pixels.shape[-2:])}")
    low, high = (bound.item() for bound in torch.aminmax(pixels.detach().float()))
    # Written so that NaN, which compares as false, is refused too.
    if not (low >= -_OUTSIDE and high <= 1 + _OUTSIDE):
        raise RewardError(f"{name} takes pixels in [0, 1], got values from {low:g} to {high:g}")


def check_clips(name: str, media: Media, prompts: Sequence[str], *, least: int = 1) -> None:
    """Refuse what `check_media` does, and pictures: there is nothing that a frame could be compared with."""
    check_media(name, media, prompts, least=least)
    if media.pixels.shape[1] < 2:
        raise RewardError(f"{name} compares the frames of a clip, got pictures")


def frames(media: Media) -> Tensor:
    """Return every frame of every clip as a picture, `[B * F, 3, H, W]` float32."""
    return media.pixels.flatten(0, 1).float()


def per_clip(scores: Tensor, media: Media) -> Tensor:
    """Return the mean over the frames of each clip, `[B]` float32 where the pixels are, of `[B * F]` scores."""
    return scores.float().view(len(media), -1).mean(1).to(media.pixels.device)


def warn_cut(name: str, lengths: Sequence[int], longest: int) -> None:
    """Warn once that prompts are longer than the text encoder reads; the models were trained to cut them."""
    if max(lengths, default=0) > longest:
        warnings.warn(f"{name} reads {longest} tokens of a prompt; what comes after is not scored", stacklevel=2)
