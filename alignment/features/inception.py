"""Inception-v3: the features of FID and KID."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from alignment.features.base import Extract, Extractor, per_clip
from alignment.features.checkpoints import WithWeights, is_program
from reward_models.loading.preprocess import eight_bit
from reward_models.loading.weights import fill, read_state

_SIDE = 299
_OF_TENSORFLOW = 1008
"""Classes of the network that FID's numbers are measured with; torchvision's own has 1,000."""


@dataclass(frozen=True)
class Inception(Extractor, WithWeights):
    """The 2,048 numbers before the classifier.

    FID's published numbers are measured with the network of TensorFlow (2015-12-05), as
    `pt_inception-2015-12-05-6726825d.pth` or NVIDIA's TorchScript `inception-2015-12-05.pt` have it; both may be given.
    With torchvision's own `inception_v3_google-*.pth`, another training run, distances are of the same kind and other
    numbers.

    Attributes:
        weights: Its file, or "owner/name/file" on the hub.

    Source: FID (arXiv 1706.08500). Pictures are scaled to 299 x 299 as TensorFlow 1 does it: bilinear, without
        smoothing, corner on corner. Its average pools do not count the padding, and the last one takes the maximum.
    """

    weights: str = "pt_inception-2015-12-05-6726825d.pth"

    licence: ClassVar[str] = "Apache-2.0"
    place: ClassVar[str] = "github.com/mseitzer/pytorch-fid/releases, fid_weights"

    def check(self) -> None:
        """Look for the file."""
        self.file(self.weights)

    def load(self, *, device: torch.device) -> Extract:
        """Return the loaded network."""
        path = self.file(self.weights)
        if is_program(path):
            program = self.scripted(path, device)
            return lambda pixels: per_clip(pixels, lambda part: program(_levels(part).byte(), return_features=True))
        network = self._network(path).to(device)
        return lambda pixels: per_clip(pixels, lambda part: network((as_tensorflow(_levels(part), _SIDE) - 128) / 128))

    def _network(self, path: Path) -> nn.Module:
        with self.published():
            state = read_state(self.asks, path)
            network = _built(state)
            fill(self.asks, network, state, unused=r"AuxLogits\..*")
        network.fc = nn.Identity()
        return network.requires_grad_(False).eval()


def _built(state: Mapping[str, Tensor]) -> Any:
    from torchvision.models import inception_v3

    classes = len(state.get("fc.weight", ())) or _OF_TENSORFLOW
    with torch.device("meta"):
        network = inception_v3(weights=None, num_classes=classes, aux_logits=False, init_weights=False)
    if classes == _OF_TENSORFLOW:
        for name, block in network.named_children():
            if name.startswith("Mixed") and "branch_pool" in dict(block.named_children()):
                _pool_with(block, _largest if name == "Mixed_7c" else _mean)
    return network


def _pool_with(block: Any, pool: Callable[[Tensor], Tensor]) -> None:
    """Let a block's last branch, which pools, pool with something else."""
    usual = block._forward
    block._forward = lambda x: [*usual(x)[:-1], block.branch_pool(pool(x))]


def _mean(x: Tensor) -> Tensor:
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, stride=1, padding=1)


def _levels(pictures: Tensor) -> Tensor:
    """Return the levels of 8 bits of pictures in [0, 1], 0 to 255."""
    return (eight_bit(pictures.float()) * 255).round()


def as_tensorflow(pictures: Tensor, side: int) -> Tensor:
    """Resize pictures `[n, c, H, W]` to a square as TensorFlow 1 does: pixel i of the new lies at i H / side."""
    height, width = (_between(length, side).to(pictures) for length in pictures.shape[-2:])
    return height @ pictures @ width.T


def _between(before: int, after: int) -> Tensor:
    """Return the weights `[after, before]` of the two old pixels that each new one lies between."""
    at = torch.arange(after, dtype=torch.float64) * before / after
    low = at.long()
    rest = at - low
    weights = torch.zeros(after, before, dtype=torch.float64)
    weights.scatter_add_(1, low[:, None], 1 - rest[:, None])
    return weights.scatter_add_(1, (low + 1).clamp(max=before - 1)[:, None], rest[:, None])
