"""CLIP's vision tower: features that a caption can be predicted from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignment.credit.backbones.base import Backbone
from alignment.credit.backbones.hub import fitted, load_network, square
from reward_models.loading.preprocess import normalise
from reward_models.loading.weights import Dtype


@dataclass(frozen=True)
class CLIP(Backbone):
    """Patch tokens of the last layer, at the picture's own proportions; the class token is left out.

    Attributes:
        weights: A transformers checkpoint of type `clip`: a folder, or "owner/name" on the hub.
        revision: Of the hub's repository.
        dtype: What the network computes in.
        shortest: Pictures whose shorter side is below this are enlarged.
        longest: Pictures whose shorter side is above this are made smaller.

    Source: CLIP (arXiv 2103.00020). Positions are interpolated where the size is not the one it was trained at.
    """

    weights: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    dtype: Dtype = "float32"
    shortest: int = 224
    longest: int = 336

    def load(self, *, device: torch.device) -> CLIPPatches:
        """Return the loaded network.

        Raises:
            ConfigError: If the checkpoint is missing, damaged or of another architecture.
        """
        from transformers import CLIPModel

        of_both_towers = r"(text_model|vision_model)\.embeddings\.position_ids"
        network = load_network(CLIPModel, self.weights, self.revision, dtype=self.dtype, unused=of_both_towers)
        return CLIPPatches(self, network.vision_model.to(device))


@dataclass(frozen=True)
class CLIPPatches:
    """The loaded vision tower."""

    how: CLIP
    network: Any

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return `[n, h, w, d]`."""
        embeddings = self.network.embeddings
        patch = embeddings.patch_size
        ready = normalise(fitted(pictures, patch, self.how.shortest, self.how.longest))
        ready = ready.to(embeddings.patch_embedding.weight.dtype)
        tokens = self.network(pixel_values=ready, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        return square(tokens, *(side // patch for side in ready.shape[-2:]))
