"""Visits to states of the caller's making, and the times that a pipeline is offered for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignment.errors import PipelineRefused
from alignment.policy.between import Receive
from samplers import Conductor, LoopLayout, Round, Skip, Visit
from samplers.paths.path import Path
from samplers.stand_in.row_times import RowTimes

ANSWER_TOLERANCE = 1e-4
"""Same weights, same rows, same arguments: answers are equal but for what a device adds up in another order."""

ROW_TIME_TOLERANCE = 1e-2
"""Rounding of a bfloat16 network moves outputs of unit size by less; another time moves them by far more."""

Point = tuple[Tensor, Tensor]
"""A state `[n, *latent]`, and the time of each row, `[n]` in [0, 1]."""

APART = 2.0**-7
"""How far a time that nobody looks at is below the next one, as a share of it."""


def times_offered(path: Path, times: Sequence[Tensor], before: int, after: int) -> Tensor:
    """Return network times for visits at `times`, and for the rounds around them, whose model outputs are not read.

    No time comes twice in a row because of those rounds: some pipelines leave out a step that would arrive where it
    left.

    Args:
        path: The forward process.
        times: For each visit the time of each row, `[B]` in [0, 1].
        before: Rounds before the first visit.
        after: Rounds after the last.

    Returns:
        `[R]`, one time per round, as a pipeline knows it from its own scheduler; `[R, B]` where rows differ.
    """

    def falling(t: Tensor, count: int) -> list[Tensor]:
        return [t * (1 - APART) ** (k + 1) for k in range(count)]

    every = [*falling(times[0], before), *times, *falling(times[-1], after)]
    offered = torch.stack([path.network_time(t) for t in every])
    return offered[:, 0] if bool((offered == offered[:, :1]).all()) else offered.as_subclass(RowTimes)


def visiting(path: Path, points: Sequence[Point], receive: Receive, rounds: int, layout: LoopLayout) -> Conductor:
    """Return the conductor of a call that visits states of the caller's making.

    The first round is a stub that gives the pipeline the first state.

    Args:
        path: The forward process.
        points: What is visited.
        receive: Called with the number of the point and the model output.
        rounds: Of a call.
        layout: The pipeline's loop.
    """
    script: list[Round] = [Skip(points[0][0])]
    for k, (x, _) in enumerate(points):
        following = points[k + 1][0] if k + 1 < len(points) else None
        script.append(Visit(x, functools.partial(receive, k), following))
    idle = rounds - len(script) if layout.before else 0
    times = times_offered(path, [t for _, t in points], layout.before + 1, idle + layout.after)
    return Conductor([*script, *([Skip()] * idle)], times=times)


def how_visits_go(visit: Callable[..., None], x: Tensor) -> tuple[bool, bool]:
    """Return whether rows may have times of their own, and whether states must be visited one per call.

    Both are compared with one state and one time per call. A model output may depend on the other visits of its call:
    some networks are given the next time.

    Args:
        visit: Called with points, pairs of states and times, and a receiver.
        x: States of two rows.
    """

    def answers(*points: tuple[Tensor, Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        visit(list(points), lambda k, v: found.append(v.float()))
        return found

    own = torch.tensor([0.25, 0.75], device=x.device)
    points = [(x, t.expand(2)) for t in (own[:1], own[1:])]
    alone = [answers(point)[0] for point in points]
    joint = zip(answers(*points), alone, strict=True)
    one_a_call = any(difference(together, by_itself) > ANSWER_TOLERANCE for together, by_itself in joint)
    try:
        (found,) = answers((x, own))
    except PipelineRefused:
        return False, one_a_call
    apart = torch.stack([alone[0][0], alone[1][1]])
    return torch.allclose(found, apart, rtol=ROW_TIME_TOLERANCE, atol=ROW_TIME_TOLERANCE), one_a_call


def difference(found: Tensor, recorded: Tensor) -> float:
    """Return the largest difference, as a share of the largest recorded number."""
    return (found - recorded).abs().max().item() / max(recorded.abs().max().item(), 1e-8)
