"""FPO: one likelihood ratio per sample, from denoising errors at several times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Samples
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.forward_process.base import LossOfOutput, Matching
from alignment.objectives.forward_process.noising import Point, frozen_outputs, mean_square
from alignment.objectives.kernels.actions import clipped
from samplers.paths.path import Path, share_of_noise
from samplers.step import expand


@dataclass(frozen=True)
class FPO(Matching):
    """L = mean max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) with rho = exp(mean_k (e_old,k - e_k)).

    e_k is the mean squared error of the predicted noise at the k-th (time, noise), the same for both policies. The mean
    over k is inside the exponential, so that noise of single errors averages out before it can bias the ratio upwards.
    All errors are needed before any gradient is known. So they are computed once without graph; the loss is then
    learned point by point with its slope at that ratio, which is exact and keeps one graph at a time.

    Attributes:
        clip: Range of the ratio.
        limit: Largest difference of two errors.
        kl: Weight of mean |v - v_ref|^2.
        points: Noised copies per sample.

    Source: Flow Matching Policy Gradients (arXiv 2507.21053) and its code: 8 points, clip 0.05, differences cut at 3.
    There advantages come from the value function of a control task; here they come from the group.
    """

    clip: float = 0.05
    limit: float = 3.0
    kl: float = 0.0
    points: int = 8

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.limit <= 0 or self.kl < 0 or self.points < 1:
            raise ConfigError("objective needs clip > 0, limit > 0, kl >= 0 and points >= 1")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The behaviour policy of the ratio, and the reference where there is a KL term."""
        return ("behaviour", "reference") if self.kl > 0 else ("behaviour",)

    def of_outputs(self, ctx: Context, batch: Samples, points: list[Point]) -> LossOfOutput:
        """Compute each sample's ratio, and return its loss with the slope there."""
        path = ctx.policy.path
        old, now = (self._errors(ctx, batch, points, name) for name in ("behaviour", "live"))
        reference = frozen_outputs(ctx, batch, points, "reference") if self.kl > 0 else None
        value, slope = self.surrogate(self._gain(old, now).mean(dim=0), batch.advantage)

        def of_output(k: int, model_output: Tensor) -> Loss:
            gain = self._gain(old[k], noise_error(path, points[k], model_output))
            per_row = value + slope * (gain - gain.detach())
            metrics = {"matching/error": now[k]} | _ratio_metrics(self._gain(old, now), self.clip)
            if reference is not None:
                drift = mean_square(model_output - reference[k])
                per_row, metrics["kl/reference"] = per_row + self.kl * drift, drift.detach()
            return Loss(per_row, metrics)

        return of_output

    def surrogate(self, log_ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clipped loss at a log ratio and its derivative by it, `[n]` each, without graph."""
        with torch.enable_grad():
            at = log_ratio.detach().requires_grad_()
            value = clipped(at.exp(), advantage, self.clip)
            (slope,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), slope

    def _gain(self, old: Tensor, now: Tensor) -> Tensor:
        return (old - now).clamp(-self.limit, self.limit)

    def _errors(self, ctx: Context, batch: Samples, points: list[Point], name: str) -> Tensor:
        """Return the error at each point under the weights `name`, `[K, n]`."""
        outputs = frozen_outputs(ctx, batch, points, name)
        return torch.stack([noise_error(ctx.policy.path, point, outputs[k]) for k, point in enumerate(points)])


def noise_error(path: Path, point: Point, model_output: Tensor) -> Tensor:
    """Return the mean squared error of the noise that `model_output` predicts, `[n]`, whatever the network predicts."""
    factor = share_of_noise(path, point.t)
    return mean_square(expand(factor, model_output) * (model_output - point.target))


def _ratio_metrics(gain: Tensor, clip: float) -> dict[str, Tensor]:
    ratio = gain.mean(dim=0).exp()
    outside = ((ratio - 1).abs() > clip).float()
    return {"ratio/mean": ratio, "ratio/max": ratio, "ratio/min": ratio, "clip/fraction": outside}
