"""ViPO's Perceptual Structuring Module: what stands out in a picture, as a frozen network sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from alignment.credit.backbones.base import Backbone, Tokens
from alignment.credit.structures.base import Sampled, Structure
from alignment.credit.structures.maps import Border, in_time, ranged, smoothed
from alignment.errors import ConfigError, NumericsError
from alignment.policy.latent_grid import LatentGrid

Front = Literal["rare", "centre"]

_NOTHING = 1e-10
"""Variance of tokens over their mean square below which they are all the same but for rounding."""
_UNDECIDED = 1e-6
"""Evidence for a sign, as a share of the largest possible, below which it does not count."""


@dataclass(frozen=True)
class Perceptual(Structure):
    """M = range(resize(smooth(sum_j lambda_j z'_j))), from the first K principal components z_j of patch tokens.

    The tokens of a sample, all frames of a clip together, are centred and projected on their first K components;
    lambda_j is a component's share of the variance of those K (they sum to 1), and z'_j the projection brought to
    [0, 1]. The weighted sum is smoothed on the patch grid, brought to the positions of the latent and to [0, 1]. A
    sample in which nothing differs gets ones: credit as it was.

    The sign of a component is arbitrary, and flipping it turns z' into 1 - z'; so each is turned the way `front` says.

    Attributes:
        backbone: What sees patches.
        components: K.
        smooth: Standard deviation of the Gaussian, in patches; 0 for none.
        border: What the Gaussian does at the edge of a frame: weights that would lie outside are "shared" out among
            the others, or lie inside, "reflected", as in public code (TeleBoost, by scipy). They differ by a tenth at
            most, in a corner.
        front: Which end of a component is structure: "rare" is the end with the few patches that differ from the many
            (positive skewness); "centre" the end that lies nearer the middle of the frame. A subject that fills most
            of the frame is the many: then "centre" is right.
        keep_mass: Divide a map by its mean, so that credit moves within a sample and none is lost. A map is 0.3 to
            0.6 on average, and steps get shorter by that much.
        batch_size: Frames at once.

    Source: ViPO (arXiv 2511.18719), eq. 6: the Perceptual Structuring Module; DINOv2, K = 3, sigma = 1. Signs: the
        paper leaves them open, and public code takes what the decomposition gives. Time: a clip has one basis, where
        public code has one per frame, whose signs may differ from the next one's; latent frame 0 is made from frame 0,
        the others from the frames that a causal VAE puts there, where public code interpolates. Range: public code
        brings every frame to [0, 1] before the clip, here the sample alone, so that a frame with little in it stays
        low. `keep_mass` is ours.
    """

    backbone: Backbone
    components: int = 3
    smooth: float = 1.0
    border: Border = "shared"
    front: Front = "rare"
    keep_mass: bool = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.components < 1 or self.smooth < 0 or self.batch_size < 1:
            raise ConfigError(
                f"structure needs components >= 1, smooth >= 0 and batch_size >= 1, got {self.components}, "
                f"{self.smooth} and {self.batch_size}"
            )

    def load(self, *, device: torch.device) -> Perceiver:
        """Return the loaded module."""
        return Perceiver(self, self.backbone.load(device=device), device)


@dataclass(frozen=True)
class Perceiver:
    """The loaded module."""

    how: Perceptual
    tokens: Tokens
    device: torch.device

    @torch.no_grad()
    def __call__(self, samples: Sampled, grid: LatentGrid) -> Tensor:
        """Return the maps of samples."""
        clips = (clip.to(self.device, torch.float32) for clip in samples.media.pixels)
        return torch.stack([self._map(clip, grid) for clip in clips]).cpu()

    def _map(self, clip: Tensor, grid: LatentGrid) -> Tensor:
        tokens = torch.cat([self.tokens(frames) for frames in clip.split(self.how.batch_size)])
        if not bool(tokens.isfinite().all()):
            raise NumericsError(
                f"source.structure.backbone: {type(self.how.backbone).__name__} answered with numbers that are not "
                "finite; compute in float32 (source.structure.backbone.dtype)"
            )
        score = standing_out(tokens, self.how.components, self.how.front)
        if score is None:
            return torch.ones(grid.frames, grid.height, grid.width, device=self.device)
        score = in_time(smoothed(score, self.how.smooth, self.how.border), grid.frames)
        size = (grid.height, grid.width)
        there = interpolate(score[:, None], size=size, mode="bilinear", antialias=True)[:, 0]
        return ranged(there[None], keep_mass=self.how.keep_mass)[0]


def standing_out(tokens: Tensor, components: int, front: Front) -> Tensor | None:
    """Return sum_j lambda_j z'_j of the tokens of one sample, in [0, 1]; None where all tokens are the same.

    Args:
        tokens: `[F, h, w, d]`.
        components: K; fewer where there are not so many.
        front: Which end of a component is structure.

    Returns:
        `[F, h, w]` float32.
    """
    place, flat = tokens.shape[:3], tokens.double().flatten(0, 2)
    centred = flat - flat.mean(dim=0)
    if centred.square().sum() <= _NOTHING * flat.square().sum():
        return None
    z, variance = projections(centred, min(components, *centred.shape))
    z = z * signs(z, place, front)
    low, high = z.amin(dim=0), z.amax(dim=0)
    ranged = (z - low) / (high - low).clamp(min=torch.finfo(z.dtype).tiny)
    share = variance / variance.sum()
    return (ranged @ share).reshape(place).float()


def projections(centred: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return (projections `[P, K]`, their variances `[K]`), largest first, of centred tokens `[P, d]`.

    Whichever of the two Gram matrices is smaller is decomposed.
    """
    patches, width = centred.shape
    if width <= patches:
        variance, axes = torch.linalg.eigh(centred.T @ centred)
        z = centred @ axes[:, -components:].flip(1)
    else:
        variance, axes = torch.linalg.eigh(centred @ centred.T)
        z = axes[:, -components:].flip(1) * variance[-components:].flip(0).clamp(min=0).sqrt()
    return z, variance[-components:].flip(0).clamp(min=0)


def signs(z: Tensor, place: tuple[int, ...] | torch.Size, front: Front) -> Tensor:
    """Return the sign, `[K]`, that turns the structured end of each component up; flipping a component flips its sign.

    Args:
        z: `[P, K]`, centred.
        place: (F, h, w), P in all.
        front: Which end that is.
    """
    if front == "rare":
        evidence, most = z.pow(3).sum(dim=0), z.abs().pow(3).sum(dim=0)
    else:
        rows, columns = (torch.linspace(-1, 1, n, dtype=z.dtype, device=z.device) for n in place[1:])
        nearness = -(rows[:, None].square() + columns.square()).expand(place[0], -1, -1).flatten()
        nearness = nearness - nearness.mean()
        evidence, most = nearness @ z, nearness.abs() @ z.abs()
    furthest = z.gather(0, z.abs().argmax(dim=0, keepdim=True))[0]
    decided = evidence.abs() > _UNDECIDED * most
    return torch.where(torch.where(decided, evidence, furthest) < 0, -1.0, 1.0).to(z.dtype)
