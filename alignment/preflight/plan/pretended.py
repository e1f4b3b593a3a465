"""A team of processes that is not there: the first of them, with as many tokens as it would have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from alignment.training.runtime.team import RowExchange, parts


@dataclass
class Pretended:
    """Stands in for a team; see `alignment.training.runtime.team.Team`.

    Attributes:
        size: How many they would be.
        rank: 0, who has most tokens.
        received: Bytes that came from the others since `take` was called.
    """

    size: int
    rank: int = 0
    received: float = 0.0
    _known: dict[int, list[int]] = field(default_factory=dict)

    def take(self) -> float:
        """Return the bytes that came from the others, and forget them."""
        received, self.received = self.received, 0.0
        return received

    def parts(self, count: int) -> list[int]:
        """Return how many of so many tokens each of them has."""
        found = parts(count, self.size)
        if sum(self._known.get(found[0], [])) < count:
            self._known[found[0]] = found
        return found

    def lengths(self, *mine: int) -> list[tuple[int, ...]]:
        """Return what all of them would have, from how tokens were divided before."""
        return [tuple(self._known.get(count) or self._sum(count)) for count in mine]

    def _sum(self, count: int) -> list[int]:
        """Return it for tokens of two kinds together; for those that nobody divided, all have them."""
        for first, others in self._known.items():
            if count - first in self._known:
                return [a + b for a, b in zip(others, self._known[count - first], strict=True)]
        return [count] * self.size

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Return rows of the right shape, forward and backward."""
        return RowExchange.apply(rows, tuple(sent), tuple(received), self._move)  # pyright: ignore[reportReturnType]

    def _move(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        rows = rows.contiguous()  # as what is sent has to be
        out = rows.new_empty(sum(received), *rows.shape[1:])
        self.received += out[: sum(received) - received[self.rank]].nbytes
        return out

    def mean(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the tensors."""
        return tuple(tensors)
