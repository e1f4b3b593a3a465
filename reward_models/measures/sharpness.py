"""How sharp a picture is, measured without any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from reward_models.base import KnownAnswer, Media, RewardModel, Rewards
from reward_models.loading.inputs import check_media, frames, per_clip

_NAME = "sharpness"
_LUMA = (0.299, 0.587, 0.114)
_LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
_SIDE = 32
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Sharpness(RewardModel):
    """Score log10(1 + variance of the Laplacian of the luma), 0 for a flat picture, about 2 to 3.5 for photographs.

    Luma goes from 0 to 255. Noise counts as sharpness, and a larger copy of a picture scores lower, so compare pictures
    of one size. A clip gets the mean over its frames. The prompt is not read. Sides of at least 3 pixels are needed.

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000), whose measure is the
        variance itself; the logarithm keeps one noisy picture from outweighing all others.
    """

    differentiable: ClassVar[bool] = True

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return noise, the same blurred, and grey."""
        noise = torch.rand(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
        blurred = interpolate(noise, size=(_SIDE // 4, _SIDE // 4), mode="area")
        blurred = interpolate(blurred, size=(_SIDE, _SIDE), mode="bilinear")
        media = Media(torch.stack([noise, blurred, torch.full_like(noise, 0.5)]))
        return (
            KnownAnswer("a blurred picture is less sharp, a grey one least", media, ("",) * 3, best_first=True),
            KnownAnswer("a grey picture scores 0", media[2:], ("",), ((-_ROUNDING, _ROUNDING),)),
        )

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def reads_prompts(self) -> bool:
        """No: it looks at the sample alone."""
        return False

    def load(self, *, device: torch.device) -> _SharpnessScorer:
        """Return the scorer; it works where the pixels are."""
        return _SharpnessScorer()


@dataclass(frozen=True)
class _SharpnessScorer:
    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; gradients reach its pixels."""
        check_media(_NAME, media, prompts, least=3)
        pixels = frames(media)
        luma = _channels(pixels * 255, _LUMA)
        kernel = torch.tensor(_LAPLACIAN, device=pixels.device)[None, None]
        edges = conv2d(luma, kernel).flatten(1)
        return Rewards(per_clip(torch.log10(1 + edges.var(1, correction=0)), media))


def _channels(pixels: Tensor, weights: tuple[float, ...]) -> Tensor:
    return (pixels * torch.tensor(weights, device=pixels.device).view(1, -1, 1, 1)).sum(1, keepdim=True)
