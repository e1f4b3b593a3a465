"""Paths from data to noise, x = alpha x0 + sigma eps, and what the network predicts on them.

    flow          v = eps - x0            (needs alpha + sigma = 1)
    epsilon       v = eps
    v_prediction  v = alpha eps - sigma x0   (needs alpha^2 + sigma^2 = 1)
    sample        v = x0

In each case x0 and eps are linear in (x, v); `clean_and_noise` gives the four numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from samplers.step import expand

Prediction = Literal["flow", "epsilon", "v_prediction", "sample"]
EXPLODING = 1.5
"""A flow ends at sigma = 1; sigmas above this belong to a variance-exploding path, whatever steps it."""

Number = TypeVar("Number", float, Tensor)


def clean_and_noise(
    prediction: Prediction, alpha: Number, sigma: Number
) -> tuple[tuple[Number, Number], tuple[Number, Number]]:
    """Return ((cx, cv), (ex, ev)) with x0 = cx x + cv v and eps = ex x + ev v."""
    one, zero = alpha * 0 + 1, alpha * 0
    if prediction == "flow":
        return (one, -sigma), (one, alpha)
    if prediction == "epsilon":
        return (1 / alpha, -sigma / alpha), (zero, one)
    if prediction == "v_prediction":
        return (alpha, -sigma), (sigma, alpha)
    return (zero, one), (1 / sigma, -alpha / sigma)


class Path(Protocol):
    """The forward process of a pipeline, for methods that noise clean samples themselves."""

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        ...

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma), each `[B]` float32, at times `t` in [0, 1], `[B]`."""
        ...

    def network_time(self, t: Tensor) -> Tensor:
        """Return the time steps a diffusers pipeline passes for `t`, `[B]`."""
        ...


@dataclass(frozen=True)
class RectifiedFlow:
    """x = (1 - t) x0 + t eps; the network is told t times the number of training steps, or 1 - t where `inverted`."""

    num_train_timesteps: int = 1000
    prediction: Prediction = "flow"
    inverted: bool = False

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 - t, t)."""
        return 1 - t, t

    def network_time(self, t: Tensor) -> Tensor:
        """Return t, or 1 - t, times the number of training steps, float."""
        return (1 - t if self.inverted else t) * self.num_train_timesteps


@dataclass(frozen=True)
class VariancePreserving:
    """x = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps over integer steps; t in [0, 1] is rounded to the nearest."""

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the square roots of abar and 1 - abar at the nearest integer step."""
        abar = self.alphas_cumprod.to(t.device)[self.network_time(t)].to(t.dtype)
        return abar.sqrt(), (1 - abar).sqrt()

    def network_time(self, t: Tensor) -> Tensor:
        """Return the nearest integer steps, int64."""
        return (t * (len(self.alphas_cumprod) - 1)).round().long()


def noised(path: Path, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t = alpha x0 + sigma eps, shaped like `x0`; `t` is `[B]` in [0, 1]."""
    alpha, sigma = path.marginal(t)
    return expand(alpha, x0) * x0 + expand(sigma, x0) * noise


def target(path: Path, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return what a perfect network would answer for this (x0, noise, t)."""
    if path.prediction == "flow":
        return noise - x0
    if path.prediction == "epsilon":
        return noise
    if path.prediction == "sample":
        return x0
    alpha, sigma = path.marginal(t)
    return expand(alpha, x0) * noise - expand(sigma, x0) * x0


def clean(path: Path, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the clean prediction x0 from the network's answer v at (x, t)."""
    (cx, cv), _ = clean_and_noise(path.prediction, *path.marginal(t))
    return expand(cx, x) * x + expand(cv, x) * v


def own_name(scheduler: object) -> str:
    """Return the name of a scheduler's class, as people know it."""
    return type(scheduler).__name__.removeprefix("StandIn")


def prediction_of(scheduler: object) -> Prediction:
    """Return what the network of this diffusers scheduler predicts.

    Raises:
        ValueError: If the scheduler names a prediction type this package does not know.
    """
    config = scheduler.config  # type: ignore[attr-defined]
    name = config.get("prediction_type", "flow" if is_flow(scheduler) else "epsilon")
    if name in ("flow", "flow_prediction"):
        return "flow"
    if name in ("epsilon", "v_prediction", "sample"):
        return name
    raise ValueError(f"prediction type {name!r} of {own_name(scheduler)} is unknown")


def is_flow(scheduler: object) -> bool:
    """Return whether this scheduler's states lie on a rectified flow: it is told so, or has sigmas and nothing else."""
    config, known = scheduler.config, vars(scheduler)  # type: ignore[attr-defined]
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    return "sigmas" in known and "alphas_cumprod" not in known and not hasattr(scheduler, "precondition_outputs")


def read_path(scheduler: object) -> Path:
    """Return the forward process of a diffusers scheduler.

    Schedulers of the DDPM family that step in another scale (x / alpha) hand the network x, which is what this path
    and visits of states of one's own speak of.

    Raises:
        ValueError: For a scheduler on neither a rectified flow nor a variance-preserving path.
    """
    config = scheduler.config  # type: ignore[attr-defined]
    if is_flow(scheduler):
        if prediction_of(scheduler) == "flow" and (config.get("sigma_max") or 0) <= EXPLODING:
            return RectifiedFlow(config.num_train_timesteps, inverted=bool(config.get("invert_sigmas")))
    elif "alphas_cumprod" in vars(scheduler):
        table = torch.as_tensor(scheduler.alphas_cumprod)  # type: ignore[attr-defined]
        return VariancePreserving(table, prediction_of(scheduler))
    raise ValueError(
        f"{own_name(scheduler)} has neither flow sigmas nor alphas_cumprod, so its forward process is unknown"
    )
