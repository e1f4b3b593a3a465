"""DINOv2: features of a self-supervised vision transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignment.credit.backbones.base import Backbone
from alignment.credit.backbones.hub import PatchTokens, load_network
from reward_models.loading.weights import Dtype


@dataclass(frozen=True)
class DINOv2(Backbone):
    """Patch tokens of the last layer, after its norm; the class token is left out.

    Attributes:
        weights: A transformers checkpoint of type `dinov2`: a folder, or "owner/name" on the hub.
        revision: Of the hub's repository.
        dtype: What the network computes in.
        shortest: Pictures whose shorter side is below this are enlarged.
        longest: Pictures whose shorter side is above this are made smaller.

    Source: DINOv2 (arXiv 2304.07193). ViPO (arXiv 2511.18719) uses it by default; public code the large one, with a
        shorter side of 224 to 518 pixels.
    """

    weights: str = "facebook/dinov2-large"
    revision: str | None = None
    dtype: Dtype = "float32"
    shortest: int = 224
    longest: int = 518

    def load(self, *, device: torch.device) -> PatchTokens:
        """Return the loaded network.

        Raises:
            ConfigError: If the checkpoint is missing, damaged or of another architecture.
        """
        from transformers import Dinov2Model

        network = load_network(Dinov2Model, self.weights, self.revision, dtype=self.dtype)
        return PatchTokens(self, network.to(device))
