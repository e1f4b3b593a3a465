"""DINOv2: the features of FD-DINOv2, which sees things where Inception sees textures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment.features.base import Extract, Extractor, per_clip
from alignment.features.checkpoints import WithWeights
from reward_models.loading.networks import frozen_network
from reward_models.loading.preprocess import IMAGENET, normalise, resize
from reward_models.loading.weights import Dtype


@dataclass(frozen=True)
class DINOv2(Extractor, WithWeights):
    """The class token of the last layer, after its norm, of pictures of 224 x 224 whatever their proportion.

    Attributes:
        weights: A transformers checkpoint of type `dinov2`: a folder, or "owner/name" on the hub.
        revision: Of the hub's repository.
        dtype: What the network computes in.
        side: Of the square that pictures are scaled to, by PIL's bicubic filter.

    Source: Stein et al. (arXiv 2306.04675), with the large network. Its positions are interpolated as transformers does
        it, which differs from the authors' own code by a tenth of a patch.
    """

    weights: str = "facebook/dinov2-large"
    revision: str | None = None
    dtype: Dtype = "float32"
    side: int = 224

    licence: ClassVar[str] = "Apache-2.0"
    place: ClassVar[str] = "huggingface.co/facebook/dinov2-large"

    def check(self) -> None:
        """Look for the folder."""
        self.folder(self.weights, self.revision)

    def load(self, *, device: torch.device) -> Extract:
        """Return the loaded network."""
        from transformers import Dinov2Model

        with self.published():
            network = frozen_network(self.asks, Dinov2Model, self.weights, self.revision, dtype=self.dtype)
        network.to(device)

        def see(pictures: Tensor) -> Tensor:
            ready = normalise(resize(pictures, self.side, self.side), *IMAGENET).to(network.dtype)
            return network(pixel_values=ready).last_hidden_state[:, 0].float()

        return lambda pixels: per_clip(pixels, see)
