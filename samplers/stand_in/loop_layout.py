"""What a pipeline does round by round: which streams it steps, and how a state is laid out.

Most pipelines step one state once per round. Some denoise several streams at once (video and sound, frames at times of
their own), each with a copy of the scheduler; some step twice per round, first only to ask for the clean prediction. A
state of several streams is one row of numbers per sample: the streams, flattened, side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoopLayout:
    """The loop of a pipeline, as a first call showed it.

    Attributes:
        calls: For each round, the streams whose scheduler is stepped, in order. A stream may occur twice:
            its first step only asks for the clean prediction, its last one is the action.
        shapes: For each stream, the shape of a sample.
        before: Time steps that the scheduler offers and the pipeline leaves out at the start (strength below 1).
        after: Time steps that it leaves out at the end.
    """

    calls: tuple[tuple[int, ...], ...]
    shapes: Mapping[int, torch.Size]
    before: int = 0
    after: int = 0

    @property
    def single(self) -> bool:
        """Whether there is one stream, so that a state keeps its shape."""
        return len(self.shapes) == 1

    @property
    def in_step(self) -> bool:
        """Whether all streams move in every round, and so may all be at one time."""
        return all(set(calls) == set(self.shapes) for calls in self.calls)

    @property
    def streams(self) -> tuple[int, ...]:
        """The streams, in the order in which they lie side by side."""
        return tuple(sorted(self.shapes))

    def join(self, pieces: Mapping[int, Tensor]) -> Tensor:
        """Return the state `[n, *latent]` of these streams; one that is not among them is 0 there."""
        if self.single:
            return next(iter(pieces.values()))
        some = next(iter(pieces.values()))
        blank = {
            s: some.new_zeros(()).expand(len(some), self.shapes[s].numel()) for s in self.shapes if s not in pieces
        }
        return torch.cat([blank[s] if s in blank else pieces[s].flatten(1) for s in self.streams], dim=1)

    def piece(self, state: Tensor, stream: int) -> Tensor:
        """Return one stream of a state, in its own shape."""
        if self.single:
            return state
        start = sum(self.shapes[s].numel() for s in self.streams if s < stream)
        return state[:, start : start + self.shapes[stream].numel()].unflatten(1, tuple(self.shapes[stream]))

    def mask(self, stream: int) -> Tensor:
        """Return `[1, D]` bool: which elements of a state are this stream's."""
        return torch.cat([torch.full((1, self.shapes[s].numel()), s == stream) for s in self.streams], dim=1)
