"""LAION's aesthetic predictors: how beautiful people find a picture, whatever it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from reward_models.base import Media, RewardModel, Rewards
from reward_models.clip_family.linear_head import linear_head
from reward_models.clip_family.towers import Towers, in_chunks, load_towers
from reward_models.loading.inputs import check_media, frames, per_clip
from reward_models.loading.weights import Dtype, Provenance, fill, find_file, read_state

_NAME = "aesthetic"


@dataclass(frozen=True)
class Aesthetic(RewardModel):
    """Score a small linear network on CLIP's unit picture vector, about 1 to 10; a clip gets the mean over its frames.

    Two predictors share the name, and the head's file decides which it is: version 2 ("sac+logos+ava1-l14-linearMSE",
    five layers, what DDPO and most trainers use) and version 1 ("sa_0_4_vit_l_14_linear", one layer; VBench divides
    its score by 10). The prompt is not read.

    Attributes:
        head: Weights of the head: a file, or "owner/name/file" on the hub. The default is a copy of version 2.
        backbone: The CLIP ViT-L/14 it stands on; as `weights` of the CLIP score.
        architecture: As there.
        dtype: What the backbone computes in; the head is always float32.
        batch_size: Frames at once.

    Source: github.com/christophschuhmann/improved-aesthetic-predictor and github.com/LAION-AI/aesthetic-predictor.
    """

    head: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"
    backbone: str = "openai/clip-vit-large-patch14"
    architecture: str | None = None
    dtype: Dtype = "float32"
    batch_size: int = 32

    differentiable: ClassVar[bool] = True

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def load(self, *, device: torch.device) -> AestheticScorer:
        """Return the scorer.

        Raises:
            RewardError: If a checkpoint is missing, damaged, or head and backbone do not fit.
        """
        file = find_file(_NAME, self.head)
        towers = load_towers(
            _NAME, self.backbone, revision=None, architecture=self.architecture, device=device, dtype=self.dtype
        )
        head = _head(read_state(_NAME, file), towers.width).to(device)
        origin = towers.provenance
        return AestheticScorer(towers, head, Provenance((file, *origin.files), origin.preprocessing), self.batch_size)


def _head(state: dict[str, Tensor], width: int) -> nn.Module:
    """Return the head that the names of the weights ask for."""
    if state.keys() != {"weight", "bias"}:
        return linear_head(_NAME, state, width)
    with torch.device("meta"):
        head = nn.Linear(width, 1)
    fill(f"{_NAME}, head", head, {key: weight.float() for key, weight in state.items()})
    return head.requires_grad_(False).eval()


@dataclass(frozen=True)
class AestheticScorer:
    """The loaded model."""

    towers: Towers
    head: nn.Module
    provenance: Provenance
    batch_size: int

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; gradients reach its pixels. The prompts are not looked at."""
        check_media(_NAME, media, prompts)
        pictures = in_chunks(self.towers.pictures, frames(media), self.batch_size)
        return Rewards(per_clip(self.head(pictures), media))
