"""Leave all blocks out but the first while that one says little new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignment.errors import FieldError
from alignment.policy.networks.caches.base import FeatureCache


@dataclass(frozen=True)
class FirstBlock(FeatureCache):
    """Add what the other blocks added last time, while the first block's residual moved by less than `threshold`.

    It decides for a whole call of the network, by the mean over its rows.

    Attributes:
        threshold: Mean change of the first block's residual, as a share of its mean size, above which all blocks run.

    Source: First Block Cache of ParaAttention, as diffusers has it.
    """

    threshold: float = 0.05

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise FieldError("threshold", f"got {self.threshold}, expected at least 0")

    def settings(self, rounds: int, now: Callable[[], Any]) -> Any:
        """Return diffusers' settings."""
        from diffusers import FirstBlockCacheConfig

        return FirstBlockCacheConfig(self.threshold)
