"""DINOv3: features of a self-supervised vision transformer, for pictures of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignment.credit.backbones.base import Backbone
from alignment.credit.backbones.hub import IMAGENET, fitted, load_network, square
from reward_models.loading.preprocess import normalise
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

    def load(self, *, device: torch.device) -> DINOv3Patches:
        """Return the loaded network.

        Raises:
            ConfigError: If the checkpoint is missing, damaged or of another architecture.
        """
        from transformers import DINOv3ViTModel

        network = load_network(DINOv3ViTModel, self.weights, self.revision, dtype=self.dtype)
        return DINOv3Patches(self, network.to(device))


@dataclass(frozen=True)
class DINOv3Patches:
    """The loaded network."""

    how: DINOv3
    network: Any

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return `[n, h, w, d]`."""
        config = self.network.config
        ready = normalise(fitted(pictures, config.patch_size, self.how.shortest, self.how.longest), *IMAGENET)
        tokens = self.network(pixel_values=ready.to(self.network.dtype)).last_hidden_state
        patches = tokens[:, 1 + config.num_register_tokens :]
        return square(patches, *(side // config.patch_size for side in ready.shape[-2:]))
