"""Foretell what attention answers from how it has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from alignment.errors import FieldError
from alignment.policy.networks.caches.base import FeatureCache


@dataclass(frozen=True)
class TaylorSeer(FeatureCache):
    """Continue the attention layers' answers by their Taylor series in the step, and run them every few steps.

    Attributes:
        interval: Steps from one that runs them to the next.
        warmup: Steps at the beginning that all run.
        order: Highest order of the series.

    Source: TaylorSeer (arXiv 2503.06923), as diffusers has it; series are kept in float32.
    """

    interval: int = 5
    warmup: int = 3
    order: int = 1

    def __post_init__(self) -> None:
        for name, got, least in (("interval", self.interval, 2), ("warmup", self.warmup, 1), ("order", self.order, 0)):
            if got < least:
                raise FieldError(name, f"got {got}, expected at least {least}")

    def settings(self, rounds: int, now: Callable[[], Any]) -> Any:
        """Return diffusers' settings."""
        from diffusers import TaylorSeerCacheConfig

        return TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.warmup,
            max_order=self.order,
            taylor_factors_dtype=torch.float32,
        )
