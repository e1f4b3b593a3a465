"""Solvers for segments that are not trained: of second order, fewer steps for the same error; and a jump to the end."""

from __future__ import annotations

import itertools
import math
from typing import Protocol

import torch
from torch import Tensor

from samplers.dynamics.ode import ODE
from samplers.paths.grid import Grid


class Solver(Protocol):
    """A deterministic rule that may remember earlier steps of one trajectory."""

    def step(self, grid: Grid, i: int, j: int, x: Tensor, v: Tensor) -> Tensor:
        """Return the state at the arrival of step j - 1, float32, shaped like `x`."""
        ...


class SecondOrder:
    """DPM-Solver++(2M) in (alpha, sigma): linear multistep in the clean prediction.

    With lambda = log(alpha / sigma), h = lambda' - lambda, r = h_previous / h, D0 the clean prediction and
    D1 = (D0 - D0_previous) / r:
        x' = (sigma' / sigma) x - alpha' (e^-h - 1) D0 - alpha' (e^-h - 1) D1 / 2
    The first step, any step from pure noise (lambda = -inf) and the last one (sigma' = 0, where x' = D0) are of first
    order. One instance serves one trajectory: its memory must not survive a window or a branch.

    Source: DPM-Solver++ (arXiv 2211.01095), algorithm 2.
    """

    def __init__(self) -> None:
        self._previous: tuple[Tensor, float] | None = None

    def step(self, grid: Grid, i: int, j: int, x: Tensor, v: Tensor) -> Tensor:
        """Return the next state and remember this step's clean prediction."""
        (alpha, sigma), (alpha_next, sigma_next) = grid.departures[i], grid.arrivals[j - 1]
        (cx, cv), _ = grid.linear(i)
        clean = cx * x.float() + cv * v.float()
        remembered, self._previous = self._previous, (clean, _log_ratio(alpha, sigma))
        if sigma_next == 0:
            return clean
        if alpha == 0 or remembered is None or not math.isfinite(remembered[1]):
            return ODE().step(grid, i, j).to(x.device).mean(x, v)
        before, lambda_before = remembered
        here = _log_ratio(alpha, sigma)
        h = _log_ratio(alpha_next, sigma_next) - here
        slope = (clean - before) * (h / (here - lambda_before))
        shrink = alpha_next * math.expm1(-h)
        return (sigma_next / sigma) * x.float() - shrink * (clean + 0.5 * slope)


class Clean:
    """One jump to the clean prediction, whatever noise the step's arrival would keep."""

    def step(self, grid: Grid, i: int, j: int, x: Tensor, v: Tensor) -> Tensor:
        """Return the clean prediction; elements of a state that do not move stay."""
        end = x.float()
        for mask, part in grid.patches or ((None, grid),):
            (cx, cv), _ = part.linear(i)
            clean = cx * x.float() + cv * v.float()
            end = clean if mask is None else torch.where(mask, clean, end)
        return end


def _log_ratio(alpha: float, sigma: float) -> float:
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def strides(first: int, rounds: int, calls: int) -> list[tuple[int, int]]:
    """Return (departure, arrival index) pairs that cover rounds `first..rounds` in `calls` even strides.

    Raises:
        ValueError: If there are fewer rounds than calls, or no call for a round that is left.
    """
    left = rounds - first
    if left == 0:
        return []
    if not 1 <= calls <= left:
        raise ValueError(f"{left} rounds cannot be covered by {calls} denoiser calls")
    edges = [first + round(left * k / calls) for k in range(calls + 1)]
    return list(itertools.pairwise(edges))
