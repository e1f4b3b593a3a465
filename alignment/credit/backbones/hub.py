"""What backbones with a checkpoint share: loading it, and bringing pictures to a size that patches divide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.nn.functional import interpolate

from alignment.errors import ConfigError
from reward_models.base import RewardError
from reward_models.loading.preprocess import normalise
from reward_models.loading.weights import Dtype, find_folder, load_pretrained

KEY = "source.structure.backbone"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of pixels that networks trained on ImageNet expect."""


def load_network(
    kind: Any, weights: str, revision: str | None, *, dtype: Dtype, unused: str = "", also: str = ""
) -> Any:
    """Return a frozen transformers network.

    Args:
        kind: Its class.
        weights: A folder, or "owner/name" on the hub.
        revision: Of the hub's repository.
        dtype: What it computes in.
        unused: Regular expression of weights that the checkpoint may have beyond the network's.
        also: Another type that a checkpoint may say it is of, whose configuration and weights hold the network's.

    Raises:
        ConfigError: If it is missing, damaged, or of another architecture.
    """
    try:
        folder = find_folder(KEY, weights, revision)
        try:
            config = kind.config_class.from_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:
            raise RewardError(f"{KEY}: {folder} holds no model: {error}") from error
        wanted = kind.config_class.model_type
        if config.model_type not in (wanted, also):
            raise RewardError(f"{KEY}: {folder} holds a model of type {config.model_type!r}, expected {wanted!r}")
        return load_pretrained(KEY, kind.from_pretrained, folder, config=config, dtype=dtype, unused=unused)
    except RewardError as error:  # their words; here it is the configuration that names what cannot be had
        raise ConfigError(str(error)) from error


def fitted(pictures: Tensor, patch: int, shortest: int, longest: int) -> Tensor:
    """Return pictures whose sides are multiples of `patch`, their shorter side between two bounds where they can be.

    The height and width keep their proportion to the nearest patch.
    """
    short = min(pictures.shape[-2:])
    scale = min(max(short, shortest), longest) / short
    height, width = (max(1, round(side * scale / patch)) * patch for side in pictures.shape[-2:])
    if (height, width) == tuple(pictures.shape[-2:]):
        return pictures
    return interpolate(pictures, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)


class Sized(Protocol):
    """A backbone that brings pictures to a size between two bounds."""

    @property
    def shortest(self) -> int: ...

    @property
    def longest(self) -> int: ...


@dataclass(frozen=True)
class PatchTokens:
    """A loaded vision transformer that takes pictures of any size.

    Attributes:
        how: The bounds of that size.
        network: It.
        leading: Tokens before those of patches: the class's, and registers.
    """

    how: Sized
    network: Any
    leading: int = 1

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return `[n, h, w, d]`."""
        patch = self.network.config.patch_size
        ready = normalise(fitted(pictures, patch, self.how.shortest, self.how.longest), *IMAGENET)
        tokens = self.network(pixel_values=ready.to(self.network.dtype)).last_hidden_state[:, self.leading :]
        return square(tokens, *(side // patch for side in ready.shape[-2:]))


def square(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens `[n, height width, d]` in their places, `[n, height, width, d]` float32."""
    return tokens.unflatten(1, (height, width)).float()
