"""CLIP score: the cosine between a picture and its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models.base import KnownAnswer, RewardModel
from reward_models.clip_family.towers import CosineScorer, load_towers
from reward_models.loading.inputs import check_prompts
from reward_models.loading.sanity_samples import colours
from reward_models.loading.weights import Dtype

_NAME = "clip"
_OFFICIAL = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class CLIP(RewardModel):
    """Score scale times the cosine of picture and prompt; a clip gets the mean over its frames.

    There is no one convention for the scale: 1 gives the cosine (about 0.15 to 0.35), 2.5 that of CLIPScore, 100 or
    null the logit that CLIP was trained with. 77 tokens of a prompt are read.

    Attributes:
        weights: A transformers checkpoint: a folder, or "owner/name" on the hub. With an architecture, a checkpoint
            with open_clip's names: a file, or "owner/name/file" on the hub.
        revision: Of the hub's repository.
        architecture: A name that open_clip knows, or a JSON file in its form; null for transformers. OpenAI's own
            weights need one whose name ends in "-quickgelu".
        scale: What the cosine is multiplied with; null takes the factor the model learned.
        dtype: What the network computes in.
        batch_size: Frames at once.

    Source: CLIP (arXiv 2103.00020); as a score of captions, CLIPScore (arXiv 2104.08718), which also cuts negative
        cosines to 0, where a reward would lose its gradient; we do not.
    """

    weights: str = _OFFICIAL
    revision: str | None = None
    architecture: str | None = None
    scale: float | None = 1.0
    dtype: Dtype = "float32"
    batch_size: int = 32

    differentiable: ClassVar[bool] = True

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse empty and endless prompts."""
        check_prompts(_NAME, prompts)

    def known_answers(self) -> Sequence[KnownAnswer]:
        """Return pictures of one colour with its name, for the default weights alone."""
        return colours() if self.weights == _OFFICIAL else ()

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def load(self, *, device: torch.device) -> CosineScorer:
        """Return the scorer.

        Raises:
            RewardError: If the checkpoint is missing, damaged or of another architecture.
        """
        towers = load_towers(
            _NAME, self.weights, revision=self.revision, architecture=self.architecture, device=device, dtype=self.dtype
        )
        return CosineScorer(towers, towers.scale if self.scale is None else self.scale, self.batch_size)
