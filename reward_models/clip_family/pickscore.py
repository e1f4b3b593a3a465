"""PickScore: which of two pictures people picked for their own prompt, by a CLIP trained on their choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models.base import KnownAnswer, RewardModel, Size
from reward_models.clip_family.towers import CosineScorer, load_hub_clip, vit_h
from reward_models.loading.inputs import check_prompts
from reward_models.loading.sanity_samples import colours
from reward_models.loading.weights import Dtype, find_folder

_NAME = "pickscore"
_OFFICIAL = "yuvalkirstain/PickScore_v1"


@dataclass(frozen=True)
class PickScore(RewardModel):
    """Score exp(learned scale) times the cosine of picture and prompt, about 15 to 25; a clip gets the mean.

    The softmax over the pictures of one prompt is the probability that each is picked. 77 tokens are read.

    Attributes:
        weights: A transformers checkpoint: a folder, or "owner/name" on the hub.
        revision: Of that repository.
        processor: Tokenizer and preprocessing: a folder, or "owner/name" on the hub.
        dtype: What the network computes in.
        batch_size: Frames at once.

    Source: Pick-a-Pic (arXiv 2305.01569); code under MIT.
    """

    weights: str = _OFFICIAL
    revision: str | None = None
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    dtype: Dtype = "float32"
    batch_size: int = 32

    differentiable: ClassVar[bool] = True

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse empty and endless prompts."""
        check_prompts(_NAME, prompts)

    def size(self) -> Size | None:
        """Return that of the official model."""
        return vit_h(self.dtype) if self.weights == _OFFICIAL else None

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return pictures of one colour with its name, for the official weights alone."""
        return colours() if self.weights == _OFFICIAL else ()

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def load(self, *, device: torch.device) -> CosineScorer:
        """Return the scorer.

        Raises:
            RewardError: If the checkpoint is missing, damaged or of another architecture.
        """
        weights = find_folder(_NAME, self.weights, self.revision)
        processor = find_folder(_NAME, self.processor, weights=False)
        towers = load_hub_clip(_NAME, weights, processor=processor, device=device, dtype=self.dtype)
        return CosineScorer(towers, towers.scale, self.batch_size)
