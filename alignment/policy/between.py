"""What a replay does round by round, and what happens in the rounds that are not trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from enum import Enum

from torch import Tensor

from alignment.data.batches import Transitions
from samplers import Again, Conductor, Grid, Look, Native, Round, Skip, Visit

Receive = Callable[[int, Tensor], None]
"""receive(k, model_output): the model output `[n, *latent]` of the k-th visit, with its graph where there is one."""

ROUNDS_AT_MOST = 10_000
"""Rounds a script covers where nobody knows yet how many the pipeline takes."""

STATE_TOLERANCE = 1e-4
"""Networks that run again with another number of rows round otherwise; another noise would be off by far more."""


class Between(Enum):
    """What happens in the rounds of a replay that are not trained, cheapest first; checked to be exact."""

    SKIPPED = "they go without the networks"
    RUN = "their networks run again, without a graph"
    WHOLE = "their networks run again, with their graph: later rounds depend on them"


def replaying(
    batch: Transitions, columns: Sequence[int], receive: Receive, rounds: int, between: Between
) -> list[Round]:
    """Return the rounds of a call that visits recorded states again.

    Where networks have to run in rounds that are not visited, the pipeline's own states follow, as they did when the
    batch was sampled, and drawn states are put in place.

    Args:
        batch: Rows of one chunk.
        columns: Which of its trained steps are visited, in order.
        receive: Called with the column and the model output.
        rounds: Of a call.
        between: What happens in the other rounds.
    """
    skips, graph, index = between is Between.SKIPPED, between is Between.WHOLE, batch.index[0].tolist()
    last = index[columns[-1]]
    script: list[Round] = [Skip() if skips or k > last else Again(graph=graph) for k in range(rounds)]
    for column in range(columns[-1] + 1):
        k = index[column]
        adjoins = column + 1 < len(index) and index[column + 1] == k + 1
        drawn = batch.x_next[:, column, 0] if not skips and batch.actions == 1 else None
        following = batch.x[:, column + 1] if adjoins else drawn
        if column not in columns:
            script[k] = Skip(following) if skips else Again(following, graph)
            continue
        if k > 0 and skips and not isinstance(script[k - 1], Visit):
            script[k - 1] = Skip(batch.x[:, column])
        tolerance = 0.0 if skips else STATE_TOLERANCE
        script[k] = Visit(batch.x[:, column], functools.partial(receive, column), following, tolerance)
    return script


def two_rounds() -> Conductor:
    """Return the conductor of a call that runs the networks just often enough to learn which are in the loop."""
    return Conductor([Native(), Native(), *([Skip()] * ROUNDS_AT_MOST)])


class Seen(Exception):
    """Leaves a pipeline as soon as its first round has shown its state, model output and grid."""


def first_round() -> Conductor:
    """Return the conductor of a call that is left by `Seen` in its first round."""

    def leave(x: Tensor, v: Tensor, grid: Grid) -> None:
        raise Seen(x, v, grid)

    return Conductor([Look(leave)] * ROUNDS_AT_MOST)
