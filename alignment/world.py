"""This process among the others, and what is loaded on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor

from alignment.structures.base import Allocator, Structure
from reward_models.base import Loaded, RewardModel, load_reward

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Rank, size, gathering, and what is loaded once: scorers, and what makes maps of credit.

    Attributes:
        state: accelerate's view of the processes.
        device: Where this process computes.
    """

    state: PartialState
    device: torch.device
    _scorers: dict[str, Loaded] = field(default_factory=dict)
    _allocators: dict[str, Allocator] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Index of this process."""
        return self.state.process_index

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.state.num_processes

    def gather(self, values: Tensor) -> Tensor:
        """Return the rows of all processes, in rank order; every process has the same number of rows."""
        if self.size == 1:
            return values
        rows = gather(values.to(self.device))
        assert isinstance(rows, Tensor)
        return rows.to(values.device)

    def everyone(self, value: T) -> list[T]:
        """Return the `value` of every process, in rank order; they need not have the same shape or keys."""
        return [value] if self.size == 1 else gather_object([value])

    def share(self, count: int) -> slice:
        """Return this process's part of `count` items, which divides by the number of processes."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def scorer(self, reward: RewardModel) -> Loaded:
        """Return the loaded scorer of a description; equal descriptions share one."""
        description = repr(reward)
        if description not in self._scorers:
            self._scorers[description] = load_reward(reward, device=self.device)
        return self._scorers[description]

    def allocator(self, structure: Structure) -> Allocator:
        """Return what makes the maps of a description; equal descriptions share one."""
        description = repr(structure)
        if description not in self._allocators:
            self._allocators[description] = structure.load(device=self.device)
        return self._allocators[description]
