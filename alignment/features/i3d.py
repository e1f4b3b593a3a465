"""I3D: the features of FVD, which sees how clips move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.errors import DataError
from alignment.features.base import Extract, Extractor
from alignment.features.checkpoints import WithWeights

_FEWEST = 9
"""Frames that leave two moments after the network's strides, which its last pool takes together."""
_TOGETHER = 8
"""Clips that the network sees in one call."""


@dataclass(frozen=True)
class I3D(Extractor, WithWeights):
    """The 400 numbers that stand for Kinetics' classes, before their softmax.

    Clips are seen as at most 16 frames, evenly taken, the first and the last among them. Published numbers take 16
    frames that follow each other: compare with them only where clips have 16.

    Attributes:
        weights: The TorchScript file `i3d_torchscript.pt`, or "owner/name/file" on the hub.

    Source: FVD (arXiv 1812.01717), in the form of StyleGAN-V (arXiv 2112.14683): the program scales sides
        itself, bilinearly to 224.
    """

    weights: str = "i3d_torchscript.pt"

    distance: ClassVar[Literal["cosine", "euclidean"]] = "euclidean"
    clips: ClassVar[bool] = True
    licence: ClassVar[str] = "Apache-2.0"
    place: ClassVar[str] = "dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt (github.com/universome/fvd-comparison)"

    def check(self) -> None:
        """Look for the file."""
        self.file(self.weights)

    def load(self, *, device: torch.device) -> Extract:
        """Return the loaded program."""
        program = self.scripted(self.file(self.weights), device)

        def see(pixels: Tensor) -> Tensor:
            if pixels.shape[1] < _FEWEST:
                raise DataError(
                    f"{self.asks} takes clips of at least {_FEWEST} frames, got {pixels.shape[1]}; leave it out for "
                    "pictures and shorter clips"
                )
            ready = 2 * pixels.transpose(1, 2).float() - 1
            parts = [program(part, rescale=False, resize=True, return_features=True) for part in ready.split(_TOGETHER)]
            return torch.cat(parts).flatten(1)

        return see
