"""Human Preference Score v2 and v2.1: which picture people prefer for a prompt, by a CLIP trained on their choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models._clip import VIT_H_FLOPS, VIT_H_WEIGHTS, OpenClip, cosines, in_chunks, load_open_clip
from reward_models._inputs import check_media, check_prompts, frames, per_clip
from reward_models._known import colours
from reward_models._weights import Dtype, Provenance, find_file, torch_dtype
from reward_models.base import KnownAnswer, Media, RewardModel, Rewards, Size

_NAME = "hpsv2"
_OFFICIAL = "xswu/HPSv2/HPS_v2.1_compressed.pt"


@dataclass(frozen=True)
class HPSv2(RewardModel):
    """Score the cosine of picture and prompt, about 0.2 to 0.35; a clip gets the mean over its frames.

    Published tables multiply by 100. A picture is padded with black to a square, never cropped. 77 tokens are read.

    Attributes:
        weights: Checkpoint with open_clip's names: a file, or "owner/name/file" on the hub. v2.1 by default; v2.0 is
            "xswu/HPSv2/HPS_v2_compressed.pt".
        revision: Of the hub's repository.
        architecture: A name that open_clip knows, or a JSON file in its form.
        antialias: Average when shrinking. False reproduces numbers made with torchvision before 0.17.
        dtype: What the network computes in.
        batch_size: Frames at once.

    Source: HPSv2 (arXiv 2306.09341); weights and code under Apache-2.0.
    """

    weights: str = _OFFICIAL
    revision: str | None = None
    architecture: str = "ViT-H-14"
    antialias: bool = True
    dtype: Dtype = "float32"
    batch_size: int = 32

    differentiable: ClassVar[bool] = True

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse empty and endless prompts."""
        check_prompts(_NAME, prompts)

    def size(self) -> Size | None:
        """Return that of the official model."""
        official = self.weights == _OFFICIAL
        return Size(VIT_H_WEIGHTS * torch_dtype(self.dtype).itemsize, VIT_H_FLOPS) if official else None

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return pictures of one colour with its name, for the official weights alone."""
        return colours() if self.weights == _OFFICIAL else ()

    def load(self, *, device: torch.device) -> HPSv2Scorer:
        """Return the scorer.

        Raises:
            RewardError: If the checkpoint or open_clip is missing, or the checkpoint is not this model's.
        """
        file = find_file(_NAME, self.weights, self.revision)
        towers = load_open_clip(
            _NAME, file, architecture=self.architecture, device=device, dtype=self.dtype, padded=True,
            antialias=self.antialias,
        )  # fmt: skip
        return HPSv2Scorer(towers, self.batch_size)


@dataclass(frozen=True)
class HPSv2Scorer:
    """The loaded model."""

    towers: OpenClip
    batch_size: int

    @property
    def provenance(self) -> Provenance:
        """What it was loaded from."""
        return self.towers.provenance

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; gradients reach its pixels."""
        check_media(_NAME, media, prompts)
        check_prompts(_NAME, prompts)
        pictures = in_chunks(self.towers.pictures, frames(media), self.batch_size)
        return Rewards(per_clip(cosines(self.towers, pictures, prompts), media))
