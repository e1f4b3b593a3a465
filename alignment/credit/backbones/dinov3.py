"""DINOv3: features of a self-supervised vision transformer, for pictures of any size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignment.credit.backbones.base import Backbone
from alignment.credit.backbones.hub import PatchTokens, load_network
from reward_models.loading.weights import Dtype


@dataclass(frozen=True)
class DINOv3(Backbone):
    """Patch tokens of the last layer, after its norm; the class token and the registers are left out.

    Attributes:
        weights: A transformers checkpoint of type `dinov3_vit`: a folder, or "owner/name" on the hub, where its
            publisher asks people to agree to a licence first.
        revision: Of the hub's repository.
        dtype: What the network computes in.
        shortest: Pictures whose shorter side is below this are enlarged.
        longest: Pictures whose shorter side is above this are made smaller.

    Source: DINOv3 (arXiv 2508.10104).
    """

    weights: str = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    revision: str | None = None
    dtype: Dtype = "float32"
    shortest: int = 224
    longest: int = 512

    def load(self, *, device: torch.device) -> PatchTokens:
        """Return the loaded network.

        Raises:
            ConfigError: If the checkpoint is missing, damaged or of another architecture.
        """
        from transformers import DINOv3ViTModel

        network = load_network(DINOv3ViTModel, self.weights, self.revision, dtype=self.dtype)
        return PatchTokens(self, network.to(device), 1 + network.config.num_register_tokens)
