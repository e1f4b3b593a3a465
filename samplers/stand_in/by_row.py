"""A batch through a pipeline that takes one row per call: a call for each, with the outcome of one call for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from samplers.paths.grid import Grid, patched
from samplers.stand_in.conductor import Act, Again, Conductor, Look, Round, Skip, Visit

Made = TypeVar("Made")


def by_row(conductor: Conductor, rows: int, run: Callable[[slice, Conductor], Made]) -> list[Made]:
    """Run one call per row, as `conductor` would run one call with all rows; it then holds their joint results.

    A receiver gets all rows at once, in the order of rounds, when the last row has run. It may compare rows (a pair's
    margin, a group's shared state), so it cannot be passed a part of them. Until then the graphs of all visits of all
    rows are kept. A batch of one row, as updates of such pipelines are made of, needs no splitting and frees each graph
    in its step.

    Args:
        conductor: What happens to all rows.
        rows: How many there are.
        run: Runs the pipeline for some rows, here one.

    Returns:
        What `run` returned for each.
    """
    rounds = [_Round(action, rows) for action in conductor.script]
    made: list[Made] = []
    conductors: list[Conductor] = []
    for row in range(rows):
        own = slice(row, row + 1)
        times = None if conductor.times is None else _times_of(conductor.times, row)
        conductors.append(Conductor([part.of(own) for part in rounds], times, conductor.layout))
        made.append(run(own, conductors[-1]))
    conductor.take_over(conductors)
    for part in rounds:
        part.tell()
    return made


@dataclass
class _Round:
    """What happens in one round, row by row.

    Attributes:
        action: What happens to all rows.
        rows: How many there are.
        observed: What the rows passed to the action's receiver.
        noise: The action's noise, drawn for all rows when the first one asks.
    """

    action: Round
    rows: int
    observed: list[tuple[Tensor, Tensor, Grid]] = field(default_factory=list)
    velocities: list[Tensor] = field(default_factory=list)
    noise: Tensor | None = None

    def of(self, own: slice) -> Round:
        """Return what happens to one row."""
        match self.action:
            case Act(noise=noise):
                return replace(self.action, noise=lambda x: self._drawn(noise, x)[own])
            case Look():
                return Look(lambda x, v, grid: self.observed.append((x, v, grid)))
            case Skip(Tensor() as state) | Again(Tensor() as state):
                return replace(self.action, state=state[own])
            case Visit(expected, _, state):
                following = None if state is None else state[own]
                return replace(self.action, expected=expected[own], receive=self.velocities.append, state=following)
            case _:
                return self.action

    def tell(self) -> None:
        """Pass the receiver what all rows gave, if the pipeline reached this round."""
        match self.action:
            case Look(receive) if self.observed:
                x, v, grids = zip(*self.observed, strict=True)
                receive(torch.cat(x), torch.cat(v), _grid_of(grids))
            case Visit(receive=receive) if self.velocities:
                receive(torch.cat(self.velocities))
            case _:
                pass

    def _drawn(self, noise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.noise is None:
            self.noise = noise(x.expand(self.rows, *x.shape[1:]))
        return self.noise


def _times_of(times: Tensor, row: int) -> Tensor:
    """Return the times `[R]` of a row, from `[R]` or `[R, B]`."""
    return times if times.ndim == 1 else times.as_subclass(Tensor)[:, row]


def _grid_of(grids: Sequence[Grid]) -> Grid:
    """Return the grid of rows side by side; elements at times of their own are those of one row."""
    parts: list[tuple[Tensor, Grid]] = []
    for row, grid in enumerate(grids):
        for mask, own in grid.patches:
            whole = mask.new_zeros(len(grids), *mask.shape[1:])
            whole[row] = mask[0]
            parts.append((whole, own))
    return patched(grids[0], parts)
