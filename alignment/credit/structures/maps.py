"""What structures share: maps of frames brought to the positions of a latent, and to [0, 1]."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from alignment.errors import ConfigError
from alignment.policy.latent_grid import LatentGrid

Border = Literal["shared", "reflected"]
UNDECIDED = 1e-6
"""Spread of a map, as a share of its largest number, below which it is constant but for rounding."""


def ranged(maps: Tensor, *, keep_mass: bool) -> Tensor:
    """Return each map `[n, frames, height, width]` brought to [0, 1], or with `keep_mass` to a mean of 1.

    A map in which nothing differs becomes ones: credit as it was.
    """
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    differs = high - low > UNDECIDED * high.abs()
    there = torch.where(differs, (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny), 1.0)
    return there / there.mean(dim=(1, 2, 3), keepdim=True) if keep_mass else there


def check_smooth(smooth: float, batch_size: int = 1) -> None:
    """Refuse a Gaussian that is none, and batches of nothing.

    Raises:
        ConfigError: With what was given.
    """
    if not 0 <= smooth < math.inf or batch_size < 1:
        raise ConfigError(f"structure needs smooth >= 0 and batch_size >= 1, got {smooth} and {batch_size}")


def at_positions(frames: Tensor, grid: LatentGrid, sigma: float) -> Tensor:
    """Return the mean of numbers of pixels `[F, H, W]` at each position, smoothed over `sigma` positions."""
    there = adaptive_avg_pool2d(frames[:, None], (grid.height, grid.width))[:, 0]
    return in_time(smoothed(there, sigma), grid.frames)


def smoothed(score: Tensor, sigma: float, border: Border = "shared") -> Tensor:
    """Return `score` `[F, h, w]` under a Gaussian.

    Args:
        score: The maps.
        sigma: Standard deviation, in positions; 0 for none.
        border: Weights that would lie outside are "shared" out among the others, or lie on the map as "reflected" at
            its edge, outermost positions repeated.
    """
    if sigma == 0:
        return score
    for axis in (-2, -1):
        size = score.shape[axis]
        if border == "shared":
            index = torch.arange(size, device=score.device)
            weights = torch.exp(-0.5 * ((index[:, None] - index) / sigma).square())
            shares = weights / weights.sum(dim=1, keepdim=True)
        else:
            shares = _reflected(size, sigma, score.device)
        score = (score.movedim(axis, -1) @ shares.T).movedim(-1, axis)
    return score


def _reflected(size: int, sigma: float, device: torch.device) -> Tensor:
    """Return what a Gaussian, cut at four standard deviations, takes from each of `size` positions, `[size, size]`."""
    reach = int(4 * sigma + 0.5)
    offset = torch.arange(-reach, reach + 1, device=device)
    weights = torch.exp(-0.5 * (offset / sigma).square())
    place = (torch.arange(size, device=device)[:, None] + offset) % (2 * size)
    place = torch.where(place < size, place, 2 * size - 1 - place)
    shares = torch.zeros(size, size, device=device)
    return shares.scatter_add(1, place, (weights / weights.sum()).expand(size, -1))


def in_time(score: Tensor, frames: int) -> Tensor:
    """Return `score` `[F, h, w]` at `frames` latent frames.

    Where F - 1 divides by `frames` - 1 the VAE is taken to be causal: the first frame is alone, and each of the others
    holds as many frames as the next. Elsewhere time is cut into equal parts.
    """
    before = len(score)
    if before == frames:
        return score
    if 1 < frames < before and (before - 1) % (frames - 1) == 0:
        rest = score[1:].unflatten(0, (frames - 1, -1)).mean(dim=1)
        return torch.cat([score[:1], rest])
    return adaptive_avg_pool1d(score.permute(1, 2, 0), frames).permute(2, 0, 1)
