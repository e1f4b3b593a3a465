"""Leave blocks out where magnitudes that were measured before say that little changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignment.errors import FieldError
from alignment.policy.networks.caches.base import FeatureCache


@dataclass(frozen=True)
class Mag(FeatureCache):
    """Add what the blocks added last time, while the error that their known magnitudes foretell stays small.

    Attributes:
        ratios: Size of the residual in each step over that in the step before, of this model: diffusers prints them
            (`MagCacheConfig(calibrate=True)`), and has FLUX's as `diffusers.hooks.mag_cache.FLUX_MAG_RATIOS`.
        threshold: Foretold error, summed over steps, above which blocks run.
        longest: Steps in a row that leave them out.
        warmup: Share of the steps at the beginning that all run.

    Source: MagCache (arXiv 2506.09045), as diffusers has it.
    """

    ratios: tuple[float, ...]
    threshold: float = 0.06
    longest: int = 3
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if not self.ratios or min(self.ratios) <= 0:
            raise FieldError("ratios", f"got {list(self.ratios)}, expected a number above 0 for each step")
        if self.threshold < 0 or self.longest < 1 or not 0 <= self.warmup <= 1:
            raise FieldError("threshold", "mag needs threshold >= 0, longest >= 1, and warmup from 0 to 1")

    def settings(self, rounds: int, now: Callable[[], Any]) -> Any:
        """Return diffusers' settings."""
        from diffusers import MagCacheConfig

        return MagCacheConfig(self.threshold, self.longest, self.warmup, rounds, list(self.ratios))
