"""The time grid of one pipeline call, read from the pipeline's own scheduler after `set_timesteps`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.path import Prediction, clean_and_noise, is_flow, prediction_of


@dataclass(frozen=True)
class Grid:
    """Where each step leaves from and where it arrives, in float64.

    Attributes:
        departures: (alpha, sigma) before step i.
        arrivals: (alpha, sigma) after step i. Usually the next departure; DDIM jumps by T // N, which differs from the
            next listed time where N does not divide T.
        prediction: What the network predicts.
        flow: Whether alpha = 1 - sigma everywhere, so that sigma is the flow's time.
    """

    departures: tuple[tuple[float, float], ...]
    arrivals: tuple[tuple[float, float], ...]
    prediction: Prediction
    flow: bool

    def __len__(self) -> int:
        return len(self.departures)

    def linear(self, i: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the numbers that give x0 and eps from (x, v) at the departure of step i."""
        return clean_and_noise(self.prediction, *self.departures[i])

    def sigma(self, i: int) -> float:
        """Return sigma at departure i; i = len(self) is the end."""
        return self.departures[i][1] if i < len(self) else self.arrivals[-1][1]


def flow_grid(sigmas: Tensor) -> Grid:
    """Return the grid of a rectified flow for `sigmas` `[N + 1]`, the last one 0."""
    points = tuple((1.0 - s, s) for s in sigmas.double().tolist())
    return Grid(points[:-1], points[1:], "flow", flow=True)


def _points(abar: Tensor) -> tuple[tuple[float, float], ...]:
    return tuple(zip(abar.sqrt().tolist(), (1 - abar).clamp(min=0).sqrt().tolist(), strict=True))


def _variance_preserving_grid(scheduler: object, timesteps: Tensor) -> Grid:
    table = torch.as_tensor(scheduler.alphas_cumprod).double()  # type: ignore[attr-defined]
    final = vars(scheduler).get("final_alpha_cumprod", torch.tensor(1.0))
    ratio = scheduler.config.num_train_timesteps // scheduler.num_inference_steps  # type: ignore[attr-defined]
    steps = timesteps.long().cpu()
    previous = steps - ratio
    after = torch.where(previous >= 0, table[previous.clamp(min=0)], torch.as_tensor(final).double())
    return Grid(_points(table[steps]), _points(after), prediction_of(scheduler), flow=False)


def read_grid(scheduler: object, timesteps: Tensor) -> Grid:
    """Return the grid a scheduler set up.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` was called.
        timesteps: Its `timesteps` `[N]`, as it set them.

    Raises:
        ValueError: For a scheduler whose marginals are unknown, or one that visits each time twice.
    """
    name = type(scheduler).__name__
    if is_flow(scheduler):
        sigmas = torch.as_tensor(scheduler.sigmas).double()  # type: ignore[attr-defined]
        if len(sigmas) != len(timesteps) + 1 or not bool((sigmas.diff() < 0).all()):
            raise ValueError(
                f"{name} has no first-order grid, one sigma a time step and a last one, each below the one before: it "
                f"has {[round(s, 4) for s in sigmas.tolist()]} for {len(timesteps)} time steps"
            )
        grid = flow_grid(sigmas)
        return Grid(grid.departures, grid.arrivals, prediction_of(scheduler), flow=True)
    if "alphas_cumprod" in vars(scheduler) and "sigmas" not in vars(scheduler):
        return _variance_preserving_grid(scheduler, timesteps)
    raise ValueError(
        f"{name} keeps neither flow sigmas nor a variance-preserving table of its own; replace it by its first-order "
        "sibling (FlowMatchEulerDiscreteScheduler for flows, DDIMScheduler for the DDPM family)"
    )
