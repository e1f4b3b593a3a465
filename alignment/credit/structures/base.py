"""Where in a sample credit belongs: maps over the latent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from alignment.data.random_streams import Draw
from alignment.policy.latent_grid import LatentGrid
from reward_models.base import Loaded, Media, RewardModel

if TYPE_CHECKING:
    from alignment.policy.policy import Policy


@dataclass(frozen=True)
class Sampled:
    """Samples whose credit is spread, and what may be asked about them.

    Attributes:
        media: What they look like.
        prompts: One text a sample.
        x0: `[n, *latent]`, the states they ended with.
        seeds: `[n]`, keys of random streams, one a sample.
        draw: The run's random streams.
        policy: What sampled.
        reward: What they are scored with.
        scorer: Returns a loaded reward.
    """

    media: Media
    prompts: tuple[str, ...]
    x0: Tensor
    seeds: Tensor
    draw: Draw
    policy: Policy
    reward: RewardModel
    scorer: Callable[[RewardModel], Loaded]


@runtime_checkable
class Structure(Protocol):
    """A light, frozen description of how credit is spread over a latent; `load` makes the heavy object.

    Attributes:
        home: Where `type:` in a config finds implementations.
    """

    home: ClassVar[str] = "alignment.credit.structures"

    def load(self, *, device: torch.device) -> Allocator:
        """Return the loaded object on `device`."""
        ...

    def prompts(self) -> tuple[str, ...]:
        """Return texts that the policy will be asked about beside those of the data; none by default."""
        return ()

    def problem(self, reward: RewardModel | None) -> str | None:
        """Return why maps cannot be made in a run with this reward, and what to do; None, the default, if they can."""
        return None


class Allocator(Protocol):
    """Makes maps. The map of a batch is the maps of its rows."""

    def __call__(self, samples: Sampled, grid: LatentGrid) -> Tensor:
        """Return what each position's credit is multiplied with, `[n, frames, height, width]` float32 on the CPU, >= 0.

        Args:
            samples: n of them.
            grid: The positions.
        """
        ...
