"""From scores to credit."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from reward_models.base import Rewards


@runtime_checkable
class Advantage(Protocol):
    """Credit of each sample, from the scores of all samples of the step on all processes.

    An unscored sample (NaN) takes no part in any mean or spread and gets 0; so does a group with no spread.

    Attributes:
        home: Where `type:` in a config finds implementations.
    """

    home: ClassVar[str] = "alignment.credit.advantages"

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the parts of the reward that it asks for; those it takes as they come need no name."""
        return ()

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32 without graph; `group` is `[B]` int64."""
        ...
