"""The time grid of one pipeline call, and the step a dynamics takes on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from samplers.paths.path import Prediction, clean_and_noise

Point = tuple[float, float]
"""(alpha, sigma)"""
Linear = tuple[float, float]
"""(cx, cv) of a prediction cx x + cv v"""


@dataclass(frozen=True)
class Grid:
    """Where each step leaves from and where it arrives, in float64.

    Attributes:
        departures: (alpha, sigma) before step i.
        arrivals: (alpha, sigma) after step i. Usually the next departure; DDIM jumps by T // N, which differs from the
            next listed time where N does not divide T.
        prediction: What the network predicts.
        flow: Whether alpha = 1 - sigma everywhere, so that sigma is the flow's time.
        clean: For each step (cx, cv) of the clean prediction cx x + cv v, where it is not one of the usual forms (EDM's
            preconditioning); null follows from `prediction`.
        patches: Where elements of a state are at times of their own: masks that broadcast against the state
            `[n, *latent]`, and the grid of the elements within. What is in no mask does not move.
    """

    departures: tuple[Point, ...]
    arrivals: tuple[Point, ...]
    prediction: Prediction
    flow: bool
    clean: tuple[Linear, ...] | None = None
    patches: tuple[tuple[Tensor, Grid], ...] = ()

    def __len__(self) -> int:
        return len(self.departures)

    def linear(self, i: int) -> tuple[Linear, Linear]:
        """Return the numbers that give x0 and eps from (x, v) at the departure of step i."""
        alpha, sigma = self.departures[i]
        if self.clean is None:
            return clean_and_noise(self.prediction, alpha, sigma)
        cx, cv = self.clean[i]
        return (cx, cv), ((1 - alpha * cx) / sigma, -alpha * cv / sigma)

    def sigma(self, i: int) -> float:
        """Return sigma at departure i; i = len(self) is the end."""
        return self.departures[i][1] if i < len(self) else self.arrivals[-1][1]

    def later(self, by: int) -> Grid:
        """Return the grid whose step i is step i + by of this one; what lies before the beginning repeats it."""

        def moved(points: tuple[Point, ...]) -> tuple[Point, ...]:
            return points[by:] if by >= 0 else (points[0],) * -by + points

        clean = None if self.clean is None else moved(self.clean)
        return replace(self, departures=moved(self.departures), arrivals=moved(self.arrivals), clean=clean)

    def at(self, i: int) -> tuple[object, ...]:
        """Return all that decides step i of a state without patches."""
        return self.departures[i], self.arrivals[i], self.linear(i)


def patched(grid: Grid, parts: Iterable[tuple[Tensor, Grid]]) -> Grid:
    """Return `grid` for a state whose elements follow the grids of `parts`."""
    return replace(grid, patches=tuple(parts))


def flow_grid(sigmas: Tensor) -> Grid:
    """Return the grid of a rectified flow for `sigmas` `[N + 1]`, the last one 0."""
    points = tuple((1.0 - s, s) for s in sigmas.double().tolist())
    return Grid(points[:-1], points[1:], "flow", flow=True)
