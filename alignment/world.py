"""This process among the others, and what is loaded on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor

from alignment.credit.structures.base import Allocator, Structure
from alignment.meetings import Meetings
from reward_models.base import Loaded, Media, RewardModel, Rewards, load_reward

T = TypeVar("T")

BUCKET = 2**26
"""Bytes of tensors that are added up over processes at once: much for a network, little beside what a GPU holds."""


@dataclass(frozen=True)
class World:
    """Rank, size, gathering, and what is loaded once: scorers, and what makes maps of credit.

    Processes that work at the same samples are one team, and count as one: they have one rank, and what is gathered
    has each sample once.

    Attributes:
        state: accelerate's view of the processes.
        device: Where this process computes.
        meetings: Where it meets the others; None where there are none.
        spread: Whether processes hold parts of the same networks.
        team: How many neighbouring processes work at the same samples.
    """

    state: PartialState
    device: torch.device
    meetings: Meetings | None = None
    spread: bool = False
    team: int = 1
    _scorers: dict[str, Loaded] = field(default_factory=dict)
    _allocators: dict[str, Allocator] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Index of this process, or of its team."""
        return self.state.process_index // self.team

    @property
    def size(self) -> int:
        """Number of processes, or of teams, that have samples of their own."""
        return self.state.num_processes // self.team

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.state.num_processes

    @property
    def main(self) -> bool:
        """Whether this is the process that records and saves."""
        return self.state.process_index == 0

    @property
    def in_step(self) -> bool:
        """Whether processes have to call the networks together, because none has all that a call needs."""
        return self.spread or self.team > 1

    def gather(self, values: Tensor) -> Tensor:
        """Return the rows of all processes, in rank order; every process has the same number of rows."""
        if self.processes == 1:
            return values
        with self.exchange("gathering numbers"):
            rows = gather(values.to(self.device))
            assert isinstance(rows, Tensor)
            rows = self._finished(rows).to(values.device)
        return rows.unflatten(0, (self.size, self.team, len(values)))[:, 0].flatten(0, 1)

    def everyone(self, value: T) -> list[T]:
        """Return the `value` of every process, in rank order; they need not have the same shape or keys."""
        return self.each(value)[:: self.team]

    def each(self, value: T) -> list[T]:
        """Return the `value` of every process, those of a team too."""
        if self.processes == 1:
            return [value]
        with self.exchange("gathering metrics"):
            return gather_object([value])

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over all processes, with a copy of few of them at a time."""
        if self.processes == 1:
            return
        with self.exchange("adding up gradients"), torch.no_grad():
            for bucket in buckets(tensors, BUCKET):
                flat = torch.cat([z.flatten() for z in bucket])
                torch.distributed.all_reduce(flat)
                for z, total in zip(bucket, flat.split([z.numel() for z in bucket]), strict=True):
                    z.copy_(total.view_as(z))
                self._finished(flat)

    def together(self, count: int) -> int:
        """Return how often this process calls the networks where it has `count` uses for them.

        Where nobody can call them alone it is as often as whoever has most uses.
        """
        return max(self.everyone(count)) if self.in_step else count

    def wait(self, what: str) -> None:
        """Wait for the other processes."""
        if self.meetings is not None:
            self.meetings.meet(what)

    def place(self, name: str) -> None:
        """Tell the other processes what this one does now, should they wait for it."""
        if self.meetings is not None:
            self.meetings.place(name)

    def united(self) -> AbstractContextManager[None]:
        """Return the context in which what ends this process ends all of them, with one message."""
        return nullcontext() if self.meetings is None else self.meetings.united()

    def part(self, error: BaseException, save: Callable[[bool], str]) -> str | None:
        """End the run on all processes, after the main one has saved what can be saved.

        Args:
            error: What ends it on this process.
            save: Called with whether anything can be saved, on the main process, and on the others if they hold parts
                of the networks; returns what was saved, in words.

        Returns:
            What was saved, on the process that tells the user; None on the others.
        """
        if self.meetings is None:
            return save(True)
        tells, saved = self.meetings.claim(error), ""
        # What lies in parts is saved by all or not at all: not while one of them is gone, or waits within a network.
        able = not self.spread or self.meetings.all_part()
        try:
            saved = save(able) if self.main or (self.spread and able) else ""
        finally:
            saved = self.meetings.settle(saved if self.main else None)
        return saved if tells else None

    def explaining(self, what: str) -> AbstractContextManager[None]:
        """Return the context in which networks are called in step; see `Meetings.explaining`."""
        return nullcontext() if self.meetings is None or not self.in_step else self.meetings.explaining(what)

    def exchange(self, what: str) -> AbstractContextManager[None]:
        """Return the context in which something is exchanged with the other processes; see `Meetings.exchange`."""
        return nullcontext() if self.meetings is None else self.meetings.exchange(what)

    def _finished(self, values: Tensor) -> Tensor:
        """Return `values` once they are there: on a GPU an exchange has only begun when its call returns."""
        if values.is_cuda:
            torch.cuda.current_stream(values.device).synchronize()
        return values

    def share(self, count: int) -> slice:
        """Return this process's part of `count` items, which divides by the number of them."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def scorer(self, reward: RewardModel) -> Loaded:
        """Return the loaded scorer of a description; equal descriptions share one."""
        description = repr(reward)
        if description not in self._scorers:
            self._scorers[description] = load_reward(reward, device=self.device)
        return self._scorers[description]

    def score(self, reward: RewardModel, media: Media, prompts: Sequence[str], group: Tensor | None) -> Rewards:
        """Return the scores of samples, on the CPU, of whom one process of a team asks.

        Args:
            reward: What to score with.
            media: The samples.
            prompts: One text per sample.
            group: `[B]`, whole groups; None where samples have none.
        """

        def ask() -> Rewards:
            rewards = self.scorer(reward)(media=media, prompts=prompts, group=group)
            return Rewards(rewards.value.cpu(), {name: part.cpu() for name, part in rewards.parts.items()})

        if self.meetings is None or self.team == 1:
            return ask()
        what = f"scores of team {self.rank}"
        if not self._asks:
            return _read(self.meetings.hear(what, self.rank * self.team, self.team - 1))
        rewards = ask()
        self.meetings.tell(what, _written(rewards))
        return rewards

    @cached_property
    def helper(self) -> ThreadPoolExecutor:
        """The one thread beside that which samples, where samples are scored in the order of asking."""
        return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def settle(self) -> None:
        """Wait until the thread beside this one has answered all that it was asked."""
        if "helper" in self.__dict__:
            self.helper.submit(lambda: None).result()

    def ready(self, reward: RewardModel) -> None:
        """Load what scores samples, on the process of a team that will ask it."""
        if self._asks:
            self.scorer(reward)

    @property
    def _asks(self) -> bool:
        return self.state.process_index % self.team == 0

    def allocator(self, structure: Structure) -> Allocator:
        """Return what makes the maps of a description; equal descriptions share one."""
        description = repr(structure)
        if description not in self._allocators:
            self._allocators[description] = structure.load(device=self.device)
        return self._allocators[description]


def _written(rewards: Rewards) -> str:
    """Return scores as text that is read without loss."""
    parts = {name: part.tolist() for name, part in rewards.parts.items()}
    return json.dumps({"value": rewards.value.tolist(), "parts": parts})


def _read(text: str) -> Rewards:
    told = json.loads(text)
    return Rewards(torch.tensor(told["value"]), {name: torch.tensor(part) for name, part in told["parts"].items()})


def buckets(tensors: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Yield tensors in their order, together as long as they take no more than `size` bytes; a larger one is alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(z.nbytes for z in bucket) + tensor.nbytes > size:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
