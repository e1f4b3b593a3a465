"""Share attention between steps, and the unconditioned half of guidance, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from alignment.errors import FieldError
from alignment.policy.networks.caches.base import FeatureCache


@dataclass(frozen=True)
class Faster(FeatureCache):
    """Use attention for several steps, and foretell the unconditioned answer from the conditioned one.

    Attributes:
        every: Steps that share an answer of attention over space.
        unconditioned: Steps that share the unconditioned answer.
        weight: What the last answer of attention weighs against the trend of the last two.
        tensor: Order of the axes of latents: channels, frames, height, width.
        distilled: Whether the model takes guidance as a number, so that there is no unconditioned answer.

    Source: FasterCache (arXiv 2410.19355), as diffusers has it: experimental there, and not of all models.
    """

    every: int = 2
    unconditioned: int = 5
    weight: float = 0.5
    tensor: Literal["BCFHW", "BFCHW", "BCHW"] = "BCFHW"
    distilled: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "unconditioned"):
            if (got := vars(self)[name]) < 1:
                raise FieldError(name, f"got {got}, expected at least 1")

    def settings(self, rounds: int, now: Callable[[], Any]) -> Any:
        """Return diffusers' settings."""
        from diffusers import FasterCacheConfig

        return FasterCacheConfig(
            spatial_attention_block_skip_range=self.every,
            unconditional_batch_skip_range=self.unconditioned,
            attention_weight_callback=lambda _: self.weight,
            tensor_format=self.tensor,
            is_guidance_distilled=self.distilled,
            current_timestep_callback=now,
        )
