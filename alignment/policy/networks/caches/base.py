"""What lets a network leave out a part of itself in some rounds, by diffusers' own hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable


@runtime_checkable
class FeatureCache(Protocol):
    """A cache of diffusers; the fields of a class here are those of its settings that matter.

    Attributes:
        home: Where `type:` in a config finds implementations.
    """

    home: ClassVar[str] = "alignment.policy.networks.caches"

    def settings(self, rounds: int, now: Callable[[], Any]) -> Any:
        """Return what `enable_cache` of a network takes.

        Args:
            rounds: Denoising steps of a call.
            now: Returns the time step that the pipeline is at.
        """
        ...
