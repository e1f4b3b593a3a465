"""Give the attention of one step to the next ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignment.errors import FieldError
from alignment.policy.networks.caches.base import FeatureCache


@dataclass(frozen=True)
class PyramidAttention(FeatureCache):
    """Use the answers of attention layers for several steps, within a range of the pipeline's time steps.

    Attributes:
        every: Steps that share an answer of self-attention, or of attention over space.
        across: The same of cross-attention; null runs it in every step.
        time: The same of attention over frames; null runs it in every step.
        between: Time steps, from low to high, between which answers are shared.

    Source: Pyramid Attention Broadcast (arXiv 2408.12588), as diffusers has it.
    """

    every: int = 2
    across: int | None = None
    time: int | None = None
    between: tuple[int, int] = (100, 800)

    def __post_init__(self) -> None:
        for name in ("every", "across", "time"):
            if (got := vars(self)[name]) is not None and got < 1:
                raise FieldError(name, f"got {got}, expected at least 1")

    def settings(self, rounds: int, now: Callable[[], Any]) -> Any:
        """Return diffusers' settings."""
        from diffusers import PyramidAttentionBroadcastConfig

        return PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=self.every,
            temporal_attention_block_skip_range=self.time,
            cross_attention_block_skip_range=self.across,
            spatial_attention_timestep_skip_range=self.between,
            temporal_attention_timestep_skip_range=self.between,
            cross_attention_timestep_skip_range=self.between,
            current_timestep_callback=now,
        )
