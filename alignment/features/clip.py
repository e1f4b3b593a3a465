"""CLIP: the features of CMMD, which go with what people see more than Inception's do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.features.base import Extract, Extractor, per_clip
from alignment.features.checkpoints import WithWeights
from reward_models.loading.networks import frozen_network
from reward_models.loading.preprocess import centre_crop, normalise, resize
from reward_models.loading.weights import Dtype


@dataclass(frozen=True)
class CLIP(Extractor, WithWeights):
    """Where CLIP puts a picture, beside texts: its middle square, scaled to the size that the network takes.

    Attributes:
        weights: A transformers checkpoint of type `clip`: a folder, or "owner/name" on the hub.
        revision: Of the hub's repository.
        dtype: What the network computes in.

    Source: CMMD (arXiv 2401.09603), with ViT-L/14 at 336 pixels; the square is scaled by PIL's bicubic filter.
    """

    weights: str = "openai/clip-vit-large-patch14-336"
    revision: str | None = None
    dtype: Dtype = "float32"

    kernel: ClassVar[Literal["cubic", "gaussian"]] = "gaussian"
    licence: ClassVar[str] = "MIT"
    place: ClassVar[str] = "huggingface.co/openai/clip-vit-large-patch14-336"

    def check(self) -> None:
        """Look for the folder."""
        self.folder(self.weights, self.revision)

    def load(self, *, device: torch.device) -> Extract:
        """Return the loaded network."""
        from transformers import CLIPModel

        positions = r"(text_model|vision_model)\.embeddings\.position_ids"  # of old checkpoints
        with self.published():
            network = frozen_network(
                self.asks, CLIPModel, self.weights, self.revision, dtype=self.dtype, unused=positions
            )
        tower, project = network.vision_model.to(device), network.visual_projection.to(device)
        side = network.config.vision_config.image_size

        def see(pictures: Tensor) -> Tensor:
            ready = normalise(resize(centre_crop(pictures, min(pictures.shape[-2:])), side, side))
            return project(tower(pixel_values=ready.to(network.dtype)).pooler_output).float()

        return lambda pixels: per_clip(pixels, see)
