"""From scores to credit."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from reward_models.base import Rewards


@runtime_checkable
class Advantage(Protocol):
    """Credit of each sample, from the scores of all samples of the step on all processes.

    An unscored sample (NaN) is left out of all means and spreads and gets 0. A group without spread gets 0 too.

    Attributes:
        home: Where `type:` in a config finds implementations.
    """

    home: ClassVar[str] = "alignment.credit.advantages"

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the reward's parts that it needs by name; empty where it takes whatever parts there are."""
        return ()

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        """Return `[B]` float32 without graph; `group` is `[B]` int64."""
        ...
