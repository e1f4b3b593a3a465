"""What a diffusers scheduler says of itself: its marginals, its times, what of the network's output it uses.

Nothing is asked by the name of a class where an attribute can be asked. (alpha, sigma) of a state are

    (1 - s, s)                       rectified flows; with `invert_sigmas` the scheduler counts s from data to noise
    (1, s)                           sigmas of a variance-exploding path: Euler, LMS, EDM, and flow steppers above s = 1
    _sigma_to_alpha_sigma_t(s)       the DPM-Solver family, whose sigmas are sigma / alpha or a flow's
    (sqrt(abar), sqrt(1 - abar))     tables of the DDPM family
    (cos t, d sin t)                 TrigFlow, d the standard deviation of its data
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from samplers.errors import SchedulerError
from samplers.paths.grid import Grid, Linear, Point, patched
from samplers.paths.path import EXPLODING, clean_and_noise, is_flow, own_name, prediction_of

_MEMORIES = ("model_outputs", "ets", "derivatives")
"""Attributes in which multistep schedulers keep what earlier steps predicted."""


def remembers(scheduler: Any) -> bool:
    """Return whether a step of this scheduler depends on earlier ones, so that a single step has no density."""
    if "old_pred_original_sample" in inspect.signature(type(scheduler).step).parameters:
        return True
    kept = [name for name in _MEMORIES if name in vars(scheduler)]
    return bool(kept) and scheduler.config.get("solver_order", 2) > 1


def read_grid(scheduler: Any, timesteps: Tensor) -> Grid:
    """Return the grid a scheduler set up.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` was called.
        timesteps: Its `timesteps` `[N]`, as it set them.

    Raises:
        SchedulerError: For a scheduler whose marginals are unknown, or one that visits each time twice.
    """
    known = vars(scheduler)
    if known.get("sigmas") is not None:
        return _grid_of_sigmas(scheduler, timesteps)
    if "alphas_cumprod" in known:
        return _grid_of_table(scheduler, timesteps)
    if scheduler.config.get("prediction_type") == "trigflow":
        return _grid_of_angles(scheduler, timesteps)
    if hasattr(scheduler, "_alpha_cumprod"):
        points = _points(torch.stack([scheduler._alpha_cumprod(t, t.device).reshape(()) for t in timesteps]).double())
        return Grid(points[:-1], points[1:], "epsilon", flow=False)
    raise SchedulerError(
        f"{own_name(scheduler)} keeps neither sigmas nor a table of alphas, so its marginals are unknown; use "
        "FlowMatchEulerDiscreteScheduler for flows, DDIMScheduler for the DDPM family"
    )


def _grid_of_sigmas(scheduler: Any, timesteps: Tensor) -> Grid:
    sigmas = torch.as_tensor(scheduler.sigmas).double().cpu()
    inverted = bool(scheduler.config.get("invert_sigmas"))
    if inverted:
        sigmas = 1 - sigmas
    falls = sigmas.diff() < 0
    if len(sigmas) != len(timesteps) + 1 or not bool(falls[:-1].all()) or not bool(sigmas[-1] <= sigmas[-2]):
        raise SchedulerError(
            f"{own_name(scheduler)} has no first-order grid, one sigma per time step and a last one, each below the "
            f"one before: it has {[round(s, 4) for s in sigmas.tolist()]} for {len(timesteps)} time steps"
        )
    points, flow = _points_of_sigmas(scheduler, sigmas)
    prediction = prediction_of(scheduler)
    if prediction == "flow" and not flow:
        prediction = "epsilon"  # x' = x + (s' - s) v on x = x0 + s eps has v = eps
    clean = _clean(scheduler, prediction, sigmas[:-1], points[:-1])
    return Grid(points[:-1], points[1:], prediction, flow, clean)


def _points_of_sigmas(scheduler: Any, sigmas: Tensor) -> tuple[tuple[Point, ...], bool]:
    """Return (alpha, sigma) of each sigma, and whether they lie on a rectified flow."""
    flow = is_flow(scheduler) and sigmas[0].item() <= EXPLODING
    if flow:
        return tuple((1.0 - s, s) for s in sigmas.tolist()), True
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        pairs = (scheduler._sigma_to_alpha_sigma_t(s) for s in sigmas)
        return tuple((float(alpha), float(sigma)) for alpha, sigma in pairs), False
    return tuple((1.0, s) for s in sigmas.tolist()), False


def _clean(scheduler: Any, prediction: str, sigmas: Tensor, points: tuple[Point, ...]) -> tuple[Linear, ...] | None:
    """Return the numbers of the clean prediction where `clean_and_noise` does not know them."""
    if hasattr(scheduler, "precondition_outputs"):  # affine in both, so two answers tell all
        one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        return tuple(
            (float(scheduler.precondition_outputs(one, zero, s)), float(scheduler.precondition_outputs(zero, one, s)))
            for s in sigmas
        )
    if prediction != "v_prediction":
        return None
    if all(alpha == 1.0 for alpha, _ in points):  # the network sees x / sqrt(1 + s^2)
        return tuple((1 / (s * s + 1), -s / math.sqrt(s * s + 1)) for _, s in points)
    return tuple((alpha, -s) for alpha, s in points)


def _points(abar: Tensor) -> tuple[Point, ...]:
    return tuple(zip(abar.sqrt().tolist(), (1 - abar).clamp(min=0).sqrt().tolist(), strict=True))


def _grid_of_table(scheduler: Any, timesteps: Tensor) -> Grid:
    table = torch.as_tensor(scheduler.alphas_cumprod).double().cpu()
    final = torch.as_tensor(vars(scheduler).get("final_alpha_cumprod", 1.0)).double().cpu()
    steps = timesteps.long().cpu()
    if "_step_index" in vars(scheduler) or hasattr(scheduler, "previous_timestep"):
        after = torch.cat([table[steps[1:]], final.reshape(1)])
    else:  # the DDIM family jumps by whole steps of training
        previous = steps - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        after = torch.where(previous >= 0, table[previous.clamp(min=0)], final)
    points, prediction = _points(table[steps]), prediction_of(scheduler)
    clean = None
    if hasattr(scheduler, "get_scalings_for_boundary_condition_discrete"):  # consistency models
        scalings = [scheduler.get_scalings_for_boundary_condition_discrete(t) for t in steps]
        usual = [clean_and_noise(prediction, *point)[0] for point in points]
        clean = tuple(
            (float(out) * cx + float(skip), float(out) * cv)
            for (skip, out), (cx, cv) in zip(scalings, usual, strict=True)
        )
    return Grid(points, _points(after), prediction, flow=False, clean=clean)


def _grid_of_angles(scheduler: Any, timesteps: Tensor) -> Grid:
    spread = float(scheduler.config.sigma_data)
    angles = timesteps.double().tolist()
    points = tuple((math.cos(t), spread * math.sin(t)) for t in angles)
    clean = tuple((math.cos(t), -math.sin(t)) for t in angles[:-1])
    return Grid(points[:-1], points[1:], "sample", flow=False, clean=clean)


# ---- the network's output --------------------------------------------------------------------------------------------


def used_output(scheduler: Any, given: Mapping[str, Any]) -> Tensor:
    """Return what of the model output a step uses, on the path that `read_grid` and `read_path` speak of.

    A learned variance is left out. Velocities that point from noise to data, because the scheduler counts its times the
    other way round or every token has a time of its own, change their sign.

    Args:
        scheduler: The scheduler.
        given: The arguments of its `step`.
    """
    v, x = given["model_output"], given["sample"]
    if v.ndim > 1 and v.shape[1] == 2 * x.shape[1] and str(scheduler.config.get("variance_type")).startswith("learned"):
        v = v.split(x.shape[1], dim=1)[0]
    if given.get("per_token_timesteps") is not None or scheduler.config.get("invert_sigmas"):
        return -v
    return v


def clips(scheduler: Any) -> bool:
    """Return whether a step of this scheduler bounds the clean prediction: the config asks, and step knows of it."""
    asked = {"clip_sample": "clip_sample", "thresholding": "_threshold_sample"}
    step = inspect.unwrap(type(scheduler).step)
    known = step.__code__.co_names
    return any(scheduler.config.get(key) and name in known for key, name in asked.items())


def bounded(scheduler: Any, grid: Grid, i: int, x: Tensor, v: Tensor) -> Tensor:
    """Return the output whose clean prediction is the bounded one, so that the step stays linear in it.

    Note: DDIM bounds x0 but keeps the noise it predicted unless `use_clipped_model_output` is on; here both follow.
    """
    (cx, cv), _ = grid.linear(i)
    clean = cx * x + cv * v
    if scheduler.config.get("thresholding"):
        clean = scheduler._threshold_sample(clean)
    else:
        limit = scheduler.config.get("clip_sample_range", 1.0)
        clean = clean.clamp(-limit, limit)
    return (clean - cx * x) / cv


def answering_clean(grid: Grid) -> Grid:
    """Return the grid of a step that is handed the clean prediction itself, in place of the network's output."""
    clean = [(0.0, 1.0)] * len(grid)
    return Grid(grid.departures, grid.arrivals, "sample", grid.flow, tuple(clean))


def grid_of_tokens(scheduler: Any, grid: Grid, i: int, times: Tensor, x: Tensor) -> Grid:
    """Return the grid of step i for a state whose tokens have times of their own.

    Each token goes to the next lower sigma of the schedule, as FlowMatchEulerDiscreteScheduler does it; one that is
    clean already stays.

    Args:
        scheduler: The scheduler.
        grid: Its grid.
        i: The step.
        times: `[n, tokens]` network times.
        x: `[n, tokens, channels]` state.
    """
    sigmas = torch.as_tensor(scheduler.sigmas).double()
    here = (times / scheduler.config.num_train_timesteps).double()
    parts = []
    for sigma in here.unique():
        below = sigmas[sigmas < sigma - 1e-6]
        if len(below) == 0:
            continue
        s, after = sigma.item(), below.max().item()
        one = Grid(((1 - s, s),), ((1 - after, after),), grid.prediction, grid.flow)
        mask = (here == sigma).reshape(*here.shape, *[1] * (x.ndim - here.ndim))
        parts.append((mask, one.later(-i)))
    return patched(grid, parts)
