"""What a source or an objective may use: the policy, the random streams, the other processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment.data.random_streams import Draw
from reward_models.base import RewardModel

if TYPE_CHECKING:  # a config names objectives and sources, and is refused before diffusers is imported
    from alignment.policy.policy import Policy
    from alignment.world import World


@dataclass(frozen=True)
class Context:
    """One step's surroundings.

    Attributes:
        step: Index of the step, from 0.
        policy: The network being trained, behind its pipeline.
        draw: Random streams keyed by what they are for.
        world: This process among the others, and the scorers loaded on it.
        reward: What the run's samples are scored with; None where nothing is scored.
    """

    step: int
    policy: Policy
    draw: Draw
    world: World
    reward: RewardModel | None
