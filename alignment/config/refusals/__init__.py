"""What is refused of a whole run, a file for each thing that it may ask for."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.config.parallel import Problem
from alignment.config.refusals import rollouts, watching
from alignment.config.run import Run


def problems(run: Run) -> Iterator[Problem]:
    """Yield what is wrong with a run."""
    for room in (rollouts, watching):
        yield from room.problems(run)
