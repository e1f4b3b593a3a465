"""What backbones with a checkpoint share: loading it, and bringing pictures to a size that patches divide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.nn.functional import interpolate

from alignment.errors import ConfigError
from reward_models.base import RewardError
from reward_models.loading.networks import frozen_network
from reward_models.loading.preprocess import IMAGENET, normalise
from reward_models.loading.weights import Dtype

KEY = "source.structure.backbone"


def load_network(
    kind: Any, weights: str, revision: str | None, *, dtype: Dtype, unused: str = "", also: str = ""
) -> Any:
    """Return a frozen transformers network, as `frozen_network` does.

    Raises:
        ConfigError: If it is missing, damaged, or of another architecture.
    """
    try:
        return frozen_network(KEY, kind, weights, revision, dtype=dtype, unused=unused, also=also)
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
