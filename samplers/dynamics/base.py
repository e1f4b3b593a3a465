"""What a rule for one step is."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch

from samplers.paths.grid import Grid
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
            SamplingError: If it is not defined on this kind of grid.
        """
        ...


STAY = torch.tensor([1.0, 0.0, 0.0])
"""(a, b, std) of an element that does not move."""


def take(dynamics: Dynamics, grid: Grid, i: int, j: int) -> Step:
    """Return the step of `dynamics` from departure i to the arrival of step j - 1.

    Where the grid has patches the step's numbers are one per element, in shapes that broadcast against the state.
    """
    if not grid.patches:
        return dynamics.step(grid, i, j)
    numbers = [STAY, *(dynamics.step(part, i, j).coefficients for _, part in grid.patches)]
    which = sum(k * mask.long() for k, (mask, _) in enumerate(grid.patches, start=1))
    return Step.from_coefficients(torch.stack(numbers).to(which.device)[which])  # type: ignore[union-attr, index]
