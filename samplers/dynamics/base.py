"""What a rule for one step is."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from samplers.grid import Grid
from samplers.step import Step


@runtime_checkable
class Dynamics(Protocol):
    """How one step goes from a time of the grid to a later one.

    Attributes:
        home: Where `type:` in a config finds implementations.
        marginal: Whether the samples approach the path's own marginals as steps grow.
        needs_flow: Whether it is defined on rectified flows alone.
        noise: Names of the fields that are noise levels: with all of them 0 every step is the ODE's, below 0 they are
            refused.
    """

    home: ClassVar[str] = "samplers.dynamics"
    marginal: ClassVar[bool]
    needs_flow: ClassVar[bool] = False
    noise: ClassVar[tuple[str, ...]] = ()

    @property
    def stochastic(self) -> bool:
        """Whether steps have a density, so that they may be trained as transitions."""
        ...

    def step(self, grid: Grid, i: int, j: int) -> Step:
        """Return the step from departure i to the arrival of step j - 1; j = i + 1 takes one step of the grid.

        Raises:
            SamplingError: If the grid is none that it is defined on.
        """
        ...
