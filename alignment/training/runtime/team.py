"""Processes that work at the same samples, and what they tell each other of the tokens each of them has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup


class Team(Protocol):
    """The processes of a team, or what stands in for them.

    Attributes:
        size: How many they are.
        rank: Index of this one among them.
    """

    @property
    def size(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def parts(self, count: int) -> list[int]:
        """Return how many of so many tokens each of them has."""
        ...

    def lengths(self, *mine: int) -> list[tuple[int, ...]]:
        """Return what all of them have, for each number that this one has."""
        ...

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send rows to each of them, and return those that each of them sent here; gradients go the way back.

        Args:
            rows: `[sum(sent), ...]`.
            sent: How many go to each.
            received: How many come from each.
        """
        ...

    def mean(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the means over the team."""
        ...


@dataclass(frozen=True)
class Processes:
    """A team of processes.

    Attributes:
        group: What tensors go over.
        numbers: What numbers go over, in main memory: a GPU has not to wait for them.
    """

    group: ProcessGroup
    numbers: ProcessGroup

    @property
    def size(self) -> int:
        """How many they are."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """Index of this one among them."""
        return self.group.rank()

    def parts(self, count: int) -> list[int]:
        """Return how many of so many tokens each of them has."""
        return parts(count, self.size)

    def lengths(self, *mine: int) -> list[tuple[int, ...]]:
        """Return what all of them have, for each number that this one has.

        Tokens that do not divide evenly leave one process with fewer, and none can tell so from what it has itself.
        """
        told = [torch.empty(len(mine), dtype=torch.int64) for _ in range(self.size)]
        torch.distributed.all_gather(told, torch.tensor(mine), group=self.numbers)
        return list(zip(*(one.tolist() for one in told), strict=True))

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send rows to each of them, and return those that each of them sent here; see `Team`."""
        return RowExchange.apply(rows, tuple(sent), tuple(received), self._move)  # pyright: ignore[reportReturnType]

    def _move(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        out = rows.new_empty(sum(received), *rows.shape[1:])
        torch.distributed.all_to_all_single(out, rows.contiguous(), list(received), list(sent), self.group)
        return out

    def mean(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the means over the team."""
        means = tuple(z.contiguous() / self.size for z in tensors)
        for z in means:
            torch.distributed.all_reduce(z, group=self.group)
        return means


Move = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]
"""Sends rows, so many to each process, and returns those that come, so many from each."""


class RowExchange(Function):
    """An exchange of rows, whose gradients go the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: Sequence[int], received: Sequence[int], move: Move) -> Tensor:
        """Return the rows that were received."""
        ctx.way = (received, sent, move)
        return move(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        """Return the gradients of the rows that were sent."""
        return RowExchange.forward(ctx, gradients[0], *ctx.way), None, None, None


def parts(count: int, size: int) -> list[int]:
    """Divide so many tokens as evenly as it goes; the first ones have one more."""
    return [(count + size - 1 - place) // size for place in range(size)]


def team_of(size: int, device: torch.device) -> Processes:
    """Return this process's team, of neighbours; all processes call this together."""
    group, _ = torch.distributed.new_subgroups(size)
    if device.type == "cpu":
        return Processes(group, group)
    return Processes(group, torch.distributed.new_subgroups(size, backend="gloo")[0])
