"""How often torch has compiled something in this process, and for how long."""

from __future__ import annotations

import time
import warnings
from typing import Any

COLD = 2
"""Steps in which compilations are expected: the first, and another for what the first did not meet (a last call that is
smaller, a window that moved)."""


class Compilations:
    """Counts what torch compiles: forward passes with and without gradient, backward passes, each for new shapes.

    Attributes:
        graphs: So far.
        seconds: Spent with them so far.
    """

    def __init__(self) -> None:
        self.graphs, self.seconds = 0, 0.0
        self._counts, self._begun, self._taken = False, 0.0, (0, 0.0)

    def count(self) -> None:
        """Count from now on."""
        if self._counts:
            return
        from torch._dynamo.callback import callback_handler

        self._counts = True
        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)

    def of_step(self, step: int) -> dict[str, float]:
        """Return what was compiled since the last call, and warn if that should be over by then.

        Nothing is returned where no network is compiled.
        """
        if not self._counts:
            return {}
        graphs, seconds = self.graphs - self._taken[0], self.seconds - self._taken[1]
        self._taken = self.graphs, self.seconds
        if graphs and step >= COLD:
            warnings.warn(
                f"step {step} compiled {graphs} graphs anew, in {seconds:.0f} s: shapes change from step to step "
                "(calls of other sizes, prompts of other lengths); keep them alike, or set policy.compile to false",
                stacklevel=2,
            )
        return {"compile/graphs": float(graphs), "seconds/compile": seconds}

    def _begin(self, _: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, _: Any) -> None:
        self.graphs += 1
        self.seconds += time.perf_counter() - self._begun


COMPILATIONS = Compilations()
"""Of this process: torch compiles for all its networks in one place."""
