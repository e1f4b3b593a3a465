"""The clipped policy gradient of DanceGRPO and Flow-GRPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.batches import Batch, Transitions
from alignment.context import Context
from alignment.errors import ConfigError
from alignment.objectives.base import Learn, Loss, Objective
from samplers import Step
from samplers.step import per_row


@dataclass(frozen=True)
class ClippedSurrogate(Objective[Transitions]):
    """L = mean max(-A rho, -A clip(rho, 1 - c, 1 + c)) + kl KL(policy || reference), over samples and trained steps.

    rho = exp(l - l_old), with l the log density of the recorded action averaged over the latent's elements; c is in
    those units (for 65,536 elements, c = 1e-4 allows a summed log ratio of 6.55). Where several actions leave one state
    the network runs once for all of them.

    Attributes:
        clip: c.
        kl: Weight of the step's Gaussian divergence from the reference, averaged over elements; 0 for none.
        weight: What multiplies a step's loss, with dL/dv = A z |b| / std at rho = 1: "true" leaves it; "equal" gives
            std / |b|, so that every step pulls alike (late steps of Flow-SDE otherwise hold most of the gradient and
            none of the signal); "sigma" gives std (TempFlow-GRPO's noise-aware weight, unnormalised).

    Source: DanceGRPO (arXiv 2505.07818), eq. 8; Flow-GRPO (arXiv 2505.05470), eq. 5. Their KL weights were tuned for
    flow_grpo's code, whose divergence is |dt| times this one.
    """

    clip: float = 1e-4
    kl: float = 0.0
    weight: Literal["true", "equal", "sigma"] = "true"
    consumes: ClassVar[type[Batch]] = Transitions

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.kl < 0:
            raise ConfigError(f"objective needs clip > 0 and kl >= 0, got {self.clip} and {self.kl}")

    @property
    def snapshots(self) -> tuple[str, ...]:
        """The reference, where there is a KL term."""
        return ("reference",) if self.kl > 0 else ()

    def __call__(self, ctx: Context, batch: Transitions, learn: Learn) -> None:
        """Visit the trained steps in order; each is learned from inside the pipeline's own step."""
        reference: dict[int, Tensor] = {}
        if self.kl > 0:
            with ctx.policy.using("reference"):
                ctx.policy.replay(batch, lambda k, v: reference.update({k: v.float()}), grad=False)
        ctx.policy.replay(batch, lambda k, v: learn(self.loss(batch, k, v, reference.get(k))), grad=True)

    def loss(self, batch: Transitions, k: int, velocity: Tensor, reference: Tensor | None) -> Loss:
        """Return the loss of the k-th trained step, each row's 1/K share.

        Args:
            batch: n rows, K steps, A actions.
            k: Column of the step.
            velocity: `[n, *latent]`, the model output now, with graph.
            reference: The same under the reference weights, where there is a KL term.
        """
        step = Step.from_coefficients(batch.coefficients[:, k])
        x, x_next = batch.x[:, k], batch.x_next[:, k]
        log_ratio = _mean_log_prob(step, x, velocity, x_next) - _mean_log_prob(step, x, batch.velocity[:, k], x_next)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        surrogate = torch.maximum(-batch.advantage * ratio, -batch.advantage * clipped).mean(dim=1)
        per_row = self._step_weight(step) * surrogate
        metrics = _ratio_metrics(ratio.detach(), int(batch.index[0, k]), self.clip)
        if reference is not None:
            divergence = step.kl(x[:, None], velocity[:, None], reference[:, None]).flatten(1).mean(dim=1)
            per_row = per_row + self.kl * divergence
            metrics["kl/reference"] = divergence.detach()
        return Loss(per_row / batch.index.shape[1], metrics)

    def _step_weight(self, step: Step) -> Tensor:
        match self.weight:
            case "true":
                return torch.ones_like(per_row(step.std))
            case "equal":
                return per_row(step.std) / per_row(step.b.abs())
            case "sigma":
                return per_row(step.std)


def _mean_log_prob(step: Step, x: Tensor, velocity: Tensor, x_next: Tensor) -> Tensor:
    """Return `[n, A]` float32: the log density of each action, averaged over the latent's elements."""
    return step.log_prob(x[:, None], velocity[:, None], x_next).flatten(2).mean(dim=2)


def _ratio_metrics(ratio: Tensor, index: int, clip: float) -> dict[str, Tensor]:
    outside = ((ratio - 1).abs() > clip).float()
    return {
        "ratio/mean": ratio,
        "ratio/max": ratio,
        "ratio/min": ratio,
        "ratio/first_error_max": (ratio - 1).abs(),
        f"ratio/step_{index}_mean": ratio,
        f"ratio/step_{index}_max": ratio,
        f"ratio/step_{index}_min": ratio,
        "clip/fraction": outside,
    }
