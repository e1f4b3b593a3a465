"""Credit where the reward looks: the size of its gradient at each position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.credit.structures.base import Sampled, Structure
from alignment.credit.structures.maps import at_positions, check_smooth, ranged
from alignment.policy.latent_grid import LatentGrid
from reward_models.base import Media, RewardModel


@dataclass(frozen=True)
class RewardGradient(Structure):
    """M = range(smooth(mean of |dr / d pixel| over the pixels and colours of a position)).

    A position that the reward does not read has no credit, and adds no noise to the update. Where the reward is a
    verifier without gradient, a differentiable judge of the same thing may say where to look. A sample whose gradient
    is the same everywhere, or 0, gets ones: credit as it was.

    Attributes:
        reward: What is differentiated; null takes the run's own reward. Differentiable, each sample by itself.
        smooth: Standard deviation of a Gaussian, in positions; 0 for none. Gradients of large networks are rough.
        keep_mass: Divide a map by its mean, so that credit moves within a sample and none is lost.
        batch_size: Samples at once.
    """

    reward: RewardModel | None = None
    smooth: float = 0.0
    keep_mass: bool = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_smooth(self.smooth, self.batch_size)

    def problem(self, reward: RewardModel | None) -> str | None:
        """Return what a reward lacks: a gradient of its own for each sample."""
        judge = self.reward or reward
        if judge is None or (judge.differentiable and judge.scope == "sample"):
            return None
        lacks = "compares the samples of a group" if judge.differentiable else "gives none that reaches the pixels"
        return (
            f"a map of a reward's gradient was asked for, but {judge} {lacks}; name a differentiable reward in "
            "source.structure.reward (docs/rewards.md), or choose another structure"
        )

    def load(self, *, device: torch.device) -> GradientMaps:
        """Return the computation; the reward is loaded where samples are scored."""
        return GradientMaps(self, device)


@dataclass(frozen=True)
class GradientMaps:
    """Differentiates a reward."""

    how: RewardGradient
    device: torch.device

    def __call__(self, samples: Sampled, grid: LatentGrid) -> Tensor:
        """Return the maps of samples."""
        scorer = samples.scorer(self.how.reward or samples.reward)
        sizes = []
        for rows in torch.arange(len(samples.media)).split(self.how.batch_size):
            part = samples.media[rows]
            pixels = part.pixels.to(self.device, torch.float32).requires_grad_()
            with torch.enable_grad():
                media = Media(pixels, part.fps, part.source)
                value = scorer(media=media, prompts=[samples.prompts[row] for row in rows.tolist()]).value
            (slope,) = torch.autograd.grad(value[~value.isnan()].sum(), pixels)
            sizes += [at_positions(clip, grid, self.how.smooth) for clip in slope.abs().mean(dim=2)]
        return ranged(torch.stack(sizes), keep_mass=self.how.keep_mass).cpu()
