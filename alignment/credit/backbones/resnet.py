"""A ResNet: features of a convolutional classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignment.credit.backbones.base import Backbone
from alignment.credit.backbones.hub import fitted, load_network
from reward_models.loading.preprocess import IMAGENET, normalise
from reward_models.loading.weights import Dtype

_HEAD = r"classifier\..*"
"""What a classifier's checkpoint has beyond the network."""


@dataclass(frozen=True)
class ResNet(Backbone):
    """The last feature map, a vector every 32 pixels.

    Attributes:
        weights: A transformers checkpoint of type `resnet`: a folder, or "owner/name" on the hub.
        revision: Of the hub's repository.
        dtype: What the network computes in.
        shortest: Pictures whose shorter side is below this are enlarged.
        longest: Pictures whose shorter side is above this are made smaller.

    Source: Deep Residual Learning (arXiv 1512.03385). ViPO (arXiv 2511.18719) compares it with DINOv2.
    """

    weights: str = "microsoft/resnet-50"
    revision: str | None = None
    dtype: Dtype = "float32"
    shortest: int = 448
    longest: int = 1024

    def load(self, *, device: torch.device) -> Features:
        """Return the loaded network.

        Raises:
            ConfigError: If the checkpoint is missing, damaged or of another architecture.
        """
        from transformers import ResNetModel

        network = load_network(ResNetModel, self.weights, self.revision, dtype=self.dtype, unused=_HEAD)
        return Features(self, network.to(device))


@dataclass(frozen=True)
class Features:
    """The loaded network."""

    how: ResNet
    network: Any

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return `[n, h, w, d]`."""
        stride = 4 * 2 ** (len(self.network.config.depths) - 1)
        ready = normalise(fitted(pictures, stride, self.how.shortest, self.how.longest), *IMAGENET)
        return self.network(pixel_values=ready.to(self.network.dtype)).last_hidden_state.permute(0, 2, 3, 1).float()
