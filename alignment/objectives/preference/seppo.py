"""SePPO: winners against an earlier policy's samples, which an anchor judges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from alignment.data.batches import Pairs
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.objectives.preference.base import Pairwise, logistic


@dataclass(frozen=True)
class SePPO(Pairwise):
    """L = -log sigmoid(beta/2 [kappa D(sample) - D(winner)]), D(x) = e(x) - e_opponent(x), kappa = -sign D(winner).

    The winner is the anchor. Where the policy already models it better than the opponent does, the opponent's sample
    is presumed to be the loser (kappa = 1), and this is DPO against it. Where the opponent still models the winner
    better, its sample is presumed to be good as well (kappa = -1), and both are learned from. A tie (kappa = 0) leaves
    the winner alone. kappa has no gradient.

    Attributes:
        beta: Strength, as in `dpo`: the mean over elements fixes its meaning.
        on_winner: What a sample that is presumed good is for: "both", learned from like the winner: the first
            version as published, hence the default; "winner_only", for nothing, kappa = 0: that version's ablation with
            an indicator, and the second version's switch from DPO to SFT but for a weight, the sigmoid of how far the
            winner has been learned; "loser", taken for the loser all the same: SPIN-Diffusion, with
            `source.opponent: last`.

    Source: SePPO (arXiv 2410.05255), its second version as SSPO; its authors published no trainer. The direction of
    kappa is read from their prose, T w(lambda) is constant as in Diffusion-DPO's code, and the sign is taken at each
    noised copy: one is a noisy judge, `points` only averages the losses. Needs `source: {type: semi_policy}`.
    """

    beta: float = 2000.0
    on_winner: Literal["both", "winner_only", "loser"] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta <= 0:
            raise ConfigError(f"objective needs beta > 0, got {self.beta}")

    @property
    def anchor(self) -> str:
        """The earlier policy that sampled."""
        return "opponent"

    def kappa(self, winner: Tensor) -> Tensor:
        """Return the anchor's verdict on the opponent's samples, `[n]`: 1 for losers, -1 for winners."""
        judged = -winner.detach().sign()
        if self.on_winner == "both":
            return judged
        return judged.clamp(min=0) if self.on_winner == "winner_only" else torch.ones_like(judged)

    def gain(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the argument of the logistic loss."""
        return self.kappa(chosen) * rejected - chosen

    def of_gain(self, gain: Tensor, advantage: Tensor) -> Tensor:
        """Return the logistic loss."""
        return logistic(gain, advantage, self.beta)

    def loss(self, batch: Pairs, chosen: Tensor, rejected: Tensor) -> Loss:
        """Return each row's share of the loss, with the anchor's verdict."""
        loss = super().loss(batch, chosen, rejected)
        metrics = {"seppo/kappa": self.kappa(chosen), "seppo/sample_drift": rejected.detach()}
        return replace(loss, metrics={**loss.metrics, **metrics})
