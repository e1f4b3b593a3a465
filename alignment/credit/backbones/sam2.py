"""SAM 2: features of an encoder that was made to cut out objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignment.credit.backbones.base import Backbone
from alignment.credit.backbones.hub import fitted, load_network
from reward_models.loading.preprocess import IMAGENET, normalise
from reward_models.loading.weights import Dtype

_STRIDE = 32
"""Pixels to a position of the encoder's coarsest stage."""


@dataclass(frozen=True)
class SAM2(Backbone):
    """Features of the image encoder, where its neck has joined its two coarsest stages: a position in 16 pixels.

    Attributes:
        weights: A transformers checkpoint of type `sam2` or `sam2_video`: a folder, or "owner/name" on the hub.
        revision: Of the hub's repository.
        dtype: What the network computes in.
        shortest: Pictures whose shorter side is below this are enlarged.
        longest: Pictures whose shorter side is above this are made smaller; the network was trained at 1,024.

    Source: SAM 2 (arXiv 2408.00714). In ViPO (arXiv 2511.18719) the first SAM does worse than DINOv2.
    """

    weights: str = "facebook/sam2.1-hiera-large"
    revision: str | None = None
    dtype: Dtype = "float32"
    shortest: int = 512
    longest: int = 1024

    def load(self, *, device: torch.device) -> SAM2Features:
        """Return the loaded network.

        Raises:
            ConfigError: If the checkpoint is missing, damaged or of another architecture.
        """
        from transformers import Sam2Model

        network = load_network(Sam2Model, self.weights, self.revision, dtype=self.dtype, also="sam2_video")
        return SAM2Features(self, network.vision_encoder.to(device))


@dataclass(frozen=True)
class SAM2Features:
    """The loaded image encoder."""

    how: SAM2
    network: Any

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return `[n, h, w, d]`."""
        ready = normalise(fitted(pictures, _STRIDE, self.how.shortest, self.how.longest), *IMAGENET)
        levels = self.network(pixel_values=ready.to(self.network.dtype)).fpn_hidden_states
        coarsest = min(levels, key=lambda level: level.shape[-1])
        return coarsest.permute(0, 2, 3, 1).float()
