"""Whether a clip keeps showing the same: how alike its frames are to a network."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from reward_models.base import Media, RewardError, RewardModel, Rewards
from reward_models.clip_family.towers import load_hub_clip
from reward_models.loading.inputs import check_clips, frames
from reward_models.loading.networks import frozen_network
from reward_models.loading.preprocess import IMAGENET, normalise, shortest_side
from reward_models.loading.weights import Dtype, find_folder

_NAME = "consistency"
_SIDE = 224
_WEIGHTS = {"subject": "facebook/dino-vitb16", "background": "openai/clip-vit-base-patch32"}
_POOLER = r"pooler\..*"


@dataclass(frozen=True)
class Consistency(RewardModel):
    """Score how like each frame is to the one before it and to the first, in [0, 1]: 1 where nothing changes.

    A clip that stands still scores best: pair it with something that asks for motion. The prompt is not read.

    Attributes:
        of: What is looked at: DINO sees the "subject", CLIP the "background", as VBench has it.
        weights: A transformers checkpoint of type `vit` (subject) or `clip` (background): a folder, or "owner/name" on
            the hub; null takes VBench's network.
        dtype: What the network computes in.
        batch_size: Frames at once.

    Source: the subject and background consistency of VBench (arXiv 2311.17982), the mean over frames of the mean of two
        cosines, neither below 0. Frames are scaled by PIL's bicubic filter; VBench's own scaling differs with the
        format of a clip.
    """

    of: Literal["subject", "background"] = "subject"
    weights: str | None = None
    dtype: Dtype = "float32"
    batch_size: int = 64

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise RewardError(f"{_NAME}: batch_size is at least 1, got {self.batch_size}")

    def part_names(self) -> tuple[str, ...]:
        """None: a score is one number."""
        return ()

    def reads_prompts(self) -> bool:
        """No: it looks at the sample alone."""
        return False

    def load(self, *, device: torch.device) -> _ConsistencyScorer:
        """Return the scorer.

        Raises:
            RewardError: If the checkpoint is missing, damaged or of another kind.
        """
        weights = self.weights or _WEIGHTS[self.of]
        if self.of == "background":
            folder = find_folder(_NAME, weights)
            towers = load_hub_clip(_NAME, folder, processor=folder, device=device, dtype=self.dtype)
            return _ConsistencyScorer(self, towers.pictures)
        network = _dino(weights, self.dtype).to(device)
        return _ConsistencyScorer(self, lambda pixels: _class_tokens(network, pixels))


def _dino(weights: str, dtype: Dtype) -> Any:
    from transformers import ViTConfig, ViTModel

    load = functools.partial(ViTModel.from_pretrained, add_pooling_layer=False)
    kind = SimpleNamespace(config_class=ViTConfig, from_pretrained=load)
    return frozen_network(_NAME, kind, weights, None, dtype=dtype, unused=_POOLER)


def _class_tokens(network: Any, pixels: Tensor) -> Tensor:
    ready = normalise(shortest_side(pixels, _SIDE), *IMAGENET).to(network.device, network.dtype)
    return network(pixel_values=ready, interpolate_pos_encoding=True).last_hidden_state[:, 0].float()


@dataclass(frozen=True)
class _ConsistencyScorer:
    model: Consistency
    see: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score clips.

        Raises:
            RewardError: If these are pictures.
        """
        check_clips(_NAME, media, prompts)
        seen = torch.cat([self.see(part) for part in frames(media).split(self.model.batch_size)])
        return Rewards(alike(seen.unflatten(0, media.pixels.shape[:2])).to(media.pixels.device))


def alike(features: Tensor) -> Tensor:
    """Return how like frames are to the one before and to the first, `[B]`, from their features `[B, F, d]`."""
    unit = normalize(features.float(), dim=-1)
    before, first = ((unit[:, 1:] * other).sum(-1).clamp(min=0) for other in (unit[:, :-1], unit[:, :1]))
    return ((before + first) / 2).mean(1)
