"""What the policy-gradient objectives on transitions share: ratios, step weights, the distance to the reference."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Transitions
from alignment.errors import ConfigError
from alignment.objectives.base import Learn, Loss, Objective
from alignment.objectives.kernels.actions import Actions, Ratios, ratio_of
from alignment.objectives.kernels.surrogate import log_ratio
from samplers import Step
from samplers.step import per_row


@dataclass(frozen=True)
class Stepwise(Objective[Transitions]):
    """A loss made of the likelihood ratios of recorded actions, averaged over samples and trained steps.

    Where several actions leave one state the network runs once for all of them.

    Attributes:
        clip: How far a ratio may go.
        kl: Weight of the step's Gaussian divergence from the reference, averaged over elements; 0 for none.
        weight: What multiplies a step's loss: "true" leaves it; "equal" divides it by the step's gradient at
            rho = 1 (|b| / std, for dL/dv = A z |b| / std), so that all steps count alike (late steps of Flow-SDE
            otherwise hold most of the gradient and none of the signal); "sigma" gives std over its mean, the
            noise-aware weight of TempFlow-GRPO. The mean is over the trained steps, so weights are 1 on average.
    """

    clip: float = 1e-4
    kl: float = 0.0
    weight: Literal["true", "equal", "sigma"] = "true"
    consumes: ClassVar[type[Batch]] = Transitions
    takes_ratios: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.clip < math.inf or not 0 <= self.kl < math.inf:
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

    def loss(self, batch: Transitions, k: int, model_output: Tensor, reference: Tensor | None) -> Loss:
        """Return the loss of the k-th trained step, each row's 1/K share.

        Args:
            batch: n rows, K steps, A actions.
            k: Column of the step.
            model_output: `[n, *latent]`, the model output now, with graph.
            reference: The same under the reference weights, where there is a KL term.
        """
        step = Step.from_coefficients(batch.coefficients[:, k])
        surrogate, ratios = self.surrogate(step, batch, k, model_output)
        loss = self._step_weight(step, batch) * surrogate
        metrics = _ratio_metrics(ratios, int(batch.index[0, k]))
        if reference is not None:
            x = batch.x[:, k]
            divergence = step.kl(x[:, None], model_output[:, None], reference[:, None]).flatten(1).mean(dim=1)
            loss = loss + self.kl * divergence
            metrics["kl/reference"] = divergence.detach()
        return Loss(loss / batch.index.shape[1], metrics)

    @abstractmethod
    def surrogate(self, step: Step, batch: Transitions, k: int, model_output: Tensor) -> tuple[Tensor, Ratios]:
        """Return what is minimised at the k-th trained step, `[n]`, and the statistics of its ratios."""

    def pull(self, step: Step) -> Tensor:
        """Return |dL/dv| at rho = 1 of each row, up to credit, noise and what all steps share, `[n]` or `[]`."""
        return per_row(step.b.abs()) / per_row(step.std)

    def _step_weight(self, step: Step, batch: Transitions) -> Tensor:
        match self.weight:
            case "true":
                return torch.ones_like(per_row(step.std))
            case "equal":
                return 1 / self.pull(step)
            case "sigma":
                return per_row(step.std) / batch.mean_std


@dataclass(frozen=True)
class Surrogate(Stepwise):
    """A loss made of ratios rho and credit A.

    rho = exp(l - l_old), with l the log density of the recorded action averaged over the latent's elements; clip ranges
    are in those units (for 65,536 elements, 1e-4 allows a summed log ratio of 6.55).
    """

    def surrogate(self, step: Step, batch: Transitions, k: int, model_output: Tensor) -> tuple[Tensor, Ratios]:
        """Return the loss of ratios and credit, averaged over actions."""
        ratio = ratio_of(log_ratio(model_output, actions(step, batch, k), batch.advantage, "mean"))
        return self.of_ratio(ratio, batch.advantage).mean(dim=1), Ratios.of(ratio, self.clip)

    @abstractmethod
    def of_ratio(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return what is minimised, `[n, A]`, of ratios and credit of that shape."""


def actions(step: Step, batch: Transitions, k: int) -> Actions:
    """Return what was done at the k-th trained step."""
    return Actions(batch.x[:, k], batch.x_next[:, k], batch.model_output[:, k], step)


def _ratio_metrics(ratios: Ratios, index: int) -> dict[str, Tensor]:
    error = torch.maximum((ratios.largest - 1).abs(), (ratios.smallest - 1).abs())
    return {
        "ratio/mean": ratios.mean,
        "ratio/max": ratios.largest,
        "ratio/min": ratios.smallest,
        "ratio/first_error_max": error,
        "ratio/first_error_mean": error,
        f"ratio/step_{index}_mean": ratios.mean,
        f"ratio/step_{index}_max": ratios.largest,
        f"ratio/step_{index}_min": ratios.smallest,
        "clip/fraction": ratios.outside,
    }
