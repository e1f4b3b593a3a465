"""Paths from data to noise, x = alpha x0 + sigma eps, and what the network predicts on them.

The clean prediction of a state and its network's answer is x0 = cx x + cv v:

    flow          v = eps - x0               (needs alpha + sigma = 1)
    epsilon       v = eps
    v_prediction  v = alpha eps - sigma x0   (needs alpha^2 + sigma^2 = 1)
    sample        v = x0

For these `clean_and_noise` gives the numbers. Networks that were made to answer in units of one (EDM's preconditioning,
TrigFlow) have numbers of their own; what a perfect one answers follows from them, whatever they are.

Times t in [0, 1] mean the same on all paths whose noise has no end: those of the rectified flow with as much noise to a
unit of data, sigma / (alpha d) = t / (1 - t), d being the standard deviation of the data as the path scales it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from samplers.errors import SchedulerError
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

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma), each `[B]` in the dtype of `t`, at times `t` in [0, 1], `[B]`."""
        ...

    def linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cx, cv) of the clean prediction cx x + cv v, each `[B]` in the dtype of `t`."""
        ...

    def input_scale(self, t: Tensor) -> Tensor:
        """Return what the scheduler multiplies a state by before the network sees it, `[B]`; 1 on most paths."""
        return torch.ones_like(t)

    def network_time(self, t: Tensor) -> Tensor:
        """Return the time steps a diffusers pipeline passes for `t`, `[B]`."""
        ...

    def time(self, step: Tensor) -> Tensor:
        """Return t, float64, of time steps as `network_time` gives them."""
        ...


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """x = (1 - t) x0 + t eps; the network is passed t times the number of training steps, or 1 - t where `inverted`."""

    num_train_timesteps: int = 1000
    prediction: Prediction = "flow"
    inverted: bool = False

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 - t, t)."""
        return 1 - t, t

    def linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cx, cv) of `clean_and_noise`."""
        return clean_and_noise(self.prediction, *self.marginal(t))[0]

    def network_time(self, t: Tensor) -> Tensor:
        """Return t, or 1 - t, times the number of training steps, float."""
        return (1 - t if self.inverted else t) * self.num_train_timesteps

    def time(self, step: Tensor) -> Tensor:
        """Return the share of the training steps, or what is left of it."""
        t = step.double() / self.num_train_timesteps
        return 1 - t if self.inverted else t


@dataclass(frozen=True)
class VariancePreserving(Path):
    """x = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps over integer steps; t in [0, 1] is rounded to the nearest."""

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the square roots of abar and 1 - abar at the nearest integer step."""
        abar = self.alphas_cumprod.to(t.device)[self.network_time(t)].to(t.dtype)
        return abar.sqrt(), (1 - abar).sqrt()

    def linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cx, cv) of `clean_and_noise`."""
        return clean_and_noise(self.prediction, *self.marginal(t))[0]

    def network_time(self, t: Tensor) -> Tensor:
        """Return the nearest integer steps, int64."""
        return (t * (len(self.alphas_cumprod) - 1)).round().long()

    def time(self, step: Tensor) -> Tensor:
        """Return the share of the steps."""
        return step.double() / (len(self.alphas_cumprod) - 1)


@dataclass(frozen=True)
class VarianceExploding(Path):
    """x = x0 + s eps, with s between `low` and `high`.

    A raw network answers with the noise. A preconditioned one sees x / sqrt(s^2 + d^2) and answers f in units of one,

        x0 = d^2 / (s^2 + d^2) x + sign s d / sqrt(s^2 + d^2) f        sign +1, or -1 where f is called a velocity

    Attributes:
        low: Smallest s.
        high: Largest s.
        spread: d, the standard deviation of the data.
        sign: 0 for a raw network.
        steps: The network is passed s times this; null for log(s) / 4.

    Source: EDM (arXiv 2206.00364), table 1.
    """

    low: float
    high: float
    spread: float = 1.0
    sign: int = 0
    steps: int | None = None

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, s)."""
        return torch.ones_like(t), self._sigma(t).to(t.dtype)

    def linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cx, cv): those of noise, or of EDM's preconditioning."""
        s, d = self._sigma(t), self.spread
        if self.sign == 0:
            return torch.ones_like(t), -s.to(t.dtype)
        squares = s.square() + d * d
        return (d * d / squares).to(t.dtype), (self.sign * s * d / squares.sqrt()).to(t.dtype)

    def input_scale(self, t: Tensor) -> Tensor:
        """Return 1 / sqrt(s^2 + d^2), or 1 for a raw network."""
        if self.sign == 0:
            return torch.ones_like(t)
        return (self._sigma(t).square() + self.spread**2).rsqrt().to(t.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        """Return what the network is passed for s, float32."""
        s = self._sigma(t)
        return (s.log() / 4 if self.steps is None else s * self.steps).float()

    def time(self, step: Tensor) -> Tensor:
        """Return s / (s + d)."""
        reported = step.double()
        s = (4 * reported).exp() if self.steps is None else reported / self.steps
        return s / (s + self.spread)

    def _sigma(self, t: Tensor) -> Tensor:
        t = t.double()
        return (self.spread * t / (1 - t)).clamp(self.low, self.high)


@dataclass(frozen=True)
class TrigFlow(Path):
    """x = cos(a) x0 + d sin(a) eps, v = d cos(a) eps - sin(a) x0; the network is passed the angle a.

    Attributes:
        spread: d, the standard deviation of the data.

    Source: sCM (arXiv 2410.11081), section 3.
    """

    spread: float

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cos a, d sin a)."""
        a = torch.atan2(t, 1 - t)
        return a.cos(), self.spread * a.sin()

    def linear(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cos a, -sin a)."""
        a = torch.atan2(t, 1 - t)
        return a.cos(), -a.sin()

    def network_time(self, t: Tensor) -> Tensor:
        """Return the angle, between 0 and pi / 2."""
        return torch.atan2(t, 1 - t)

    def time(self, step: Tensor) -> Tensor:
        """Return sin a / (sin a + cos a)."""
        a = step.double()
        return a.sin() / (a.sin() + a.cos())


def noised(path: Path, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t = alpha x0 + sigma eps, shaped like `x0`; `t` is `[B]` in [0, 1]."""
    alpha, sigma = path.marginal(t)
    return expand(alpha, x0) * x0 + expand(sigma, x0) * noise


def target(path: Path, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return what a perfect network would answer for this (x0, noise, t): the v that gives x0 = cx x + cv v."""
    of_data, of_noise = (share.to(x0.dtype) for share in target_shares(path, t))
    return expand(of_data, x0) * x0 + expand(of_noise, x0) * noise


def target_shares(path: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of x0 and how much of the noise a perfect network's answer is, `[B]` each, float64.

    They are (1 - cx alpha) / cv and -cx sigma / cv; in float64, because both differences are small near the ends.
    """
    (alpha, sigma), (cx, cv) = path.marginal(t.double()), path.linear(t.double())
    return (1 - cx * alpha) / cv, -cx * sigma / cv


def clean(path: Path, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Return the clean prediction x0 from the network's answer v at (x, t)."""
    cx, cv = path.linear(t)
    return expand(cx, x) * x + expand(cv, x) * v


def share_of_noise(path: Path, t: Tensor) -> Tensor:
    """Return how much of an answer is in the noise it predicts, (x - alpha x0) / sigma: -alpha cv / sigma."""
    (alpha, sigma), (_, cv) = path.marginal(t.double()), path.linear(t.double())
    return (-alpha * cv / sigma).to(t.dtype)


def own_name(scheduler: object) -> str:
    """Return the name of a scheduler's class, as people know it."""
    return type(scheduler).__name__.removeprefix("StandIn")


def prediction_of(scheduler: object) -> Prediction:
    """Return what the network of this diffusers scheduler predicts.

    Raises:
        SchedulerError: If the scheduler names a prediction type this package does not know.
    """
    config = scheduler.config  # type: ignore[attr-defined]
    name = config.get("prediction_type", "flow" if is_flow(scheduler) else "epsilon")
    if name in ("flow", "flow_prediction"):
        return "flow"
    if name in ("epsilon", "v_prediction", "sample"):
        return name
    raise SchedulerError(f"prediction type {name!r} of {own_name(scheduler)} is unknown")


def is_flow(scheduler: object) -> bool:
    """Return whether this scheduler's states lie on a rectified flow: its config says so, or it has only sigmas."""
    config, known = scheduler.config, vars(scheduler)  # type: ignore[attr-defined]
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    return "sigmas" in known and "alphas_cumprod" not in known and not hasattr(scheduler, "precondition_outputs")


def read_path(scheduler: object) -> Path:
    """Return the forward process of a diffusers scheduler.

    Schedulers of the DDPM family that step in another scale (x / alpha) hand the network x, which is what this path
    and visits of states of one's own speak of.

    Raises:
        SchedulerError: For a scheduler whose forward process is none of these.
    """
    config, known = scheduler.config, vars(scheduler)  # type: ignore[attr-defined]
    if hasattr(scheduler, "precondition_outputs"):
        sign = -1 if prediction_of(scheduler) == "v_prediction" else 1
        return VarianceExploding(config.sigma_min, config.sigma_max, config.sigma_data, sign)
    if is_flow(scheduler):
        if prediction_of(scheduler) == "flow" and "num_train_timesteps" in config:
            highest = config.get("sigma_max") or 0
            if highest <= EXPLODING:
                return RectifiedFlow(config.num_train_timesteps, inverted=bool(config.get("invert_sigmas")))
            return VarianceExploding(config.get("sigma_min") or 0.0, highest, steps=config.num_train_timesteps)
    elif "alphas_cumprod" in known:
        table, prediction = torch.as_tensor(known["alphas_cumprod"]), prediction_of(scheduler)
        if config.get("timestep_type") == "continuous" and prediction == "v_prediction":
            ratio = ((1 - table) / table).sqrt()
            return VarianceExploding(
                config.get("sigma_min") or float(ratio[0]), config.get("sigma_max") or float(ratio[-1]), sign=-1
            )
        return VariancePreserving(table, prediction)
    elif config.get("prediction_type") == "trigflow":
        return TrigFlow(config.sigma_data)
    raise SchedulerError(
        f"{own_name(scheduler)} has neither flow sigmas nor alphas_cumprod nor a preconditioning, so its forward "
        "process is unknown"
    )
