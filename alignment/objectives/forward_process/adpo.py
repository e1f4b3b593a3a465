"""ADPO: a listwise preference, anchored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Samples
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.forward_process.base import Gains, sum_by_group
from alignment.objectives.forward_process.noising import Point, noised_alike


@dataclass(frozen=True)
class ADPO(Gains):
    """L = KL(q || p) over the samples of a group: q = softmax(A / sharpness), p = softmax(gain / temperature).

    The gain against the anchor stands for log rho, so that p is what the policy has learned to prefer since then, and
    it is drawn to what the rewards prefer, and held there. A group that ties is held to the anchor. With two samples
    and a sure preference this is DPO with beta = 2 / temperature. All samples of a group share their times and noise.

    Attributes:
        temperature: In the units of a mean squared error; a small value moves the policy little. The authors'
            tau is of log likelihoods that are sums over a sample, and has no meaning here.
        sharpness: Temperature of the target, in the units of the credit; a small value puts all of it on the best
            sample.
        anchor: What the gain is counted from: the "reference", the "behaviour" copy (the iterate before, where
            snapshots.behaviour is 0, and a moving average above), or the "ema". The authors' anchor that is refreshed
            when a divergence grows too large is `anchor: behaviour` with
            `snapshots: {behaviour: 0.0, above: {kl/anchor: 0.1}}`.

    Source: ADPO (arXiv 2510.18913), with denoising errors for log likelihoods as in Diffusion-DPO. A row bears its term
    of the divergence times the size of its group, so that the mean over rows is the mean over groups.
    """

    temperature: float = 1e-3
    sharpness: float = 1.0
    anchor: Literal["reference", "behaviour", "ema"] = "reference"
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or self.sharpness <= 0:
            raise ConfigError("objective needs temperature > 0 and sharpness > 0")

    def draw(self, ctx: Context, batch: Samples) -> list[Point]:
        """Return the noised copies; a group shares its noise, so that its gains differ by its samples alone."""
        return super().draw(ctx, noised_alike(ctx, batch))

    def of_gains(self, gain: Tensor, batch: Samples, group: Tensor) -> Loss:
        """Return the divergence of one noised copy, each row's term."""
        target = log_softmax(batch.advantage / self.sharpness, group)
        learned = log_softmax(gain / self.temperature, group)
        size = sum_by_group(torch.ones_like(target), group)
        apart = size * target.exp() * (target - learned)
        best = batch.advantage >= _largest(batch.advantage, group)[group]
        moved = -(size.log() + learned.detach())  # the anchor's own p is the same for all samples of a group
        metrics = {"adpo/divergence": apart.detach(), "adpo/best": learned.detach().exp()[best], "kl/anchor": moved}
        return Loss(apart, metrics)


def log_softmax(value: Tensor, group: Tensor) -> Tensor:
    """Return the log of the softmax within each row's group, `[n]`."""
    shifted = value - _largest(value.detach(), group)[group]
    return shifted - sum_by_group(shifted.exp(), group).log()


def _largest(value: Tensor, group: Tensor) -> Tensor:
    low = value.new_full((int(group.max()) + 1,), -torch.inf)
    return low.scatter_reduce(0, group, value, "amax")
