"""Credit where a clip moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.credit.structures.base import Sampled, Structure
from alignment.credit.structures.maps import at_positions, check_smooth, ranged
from alignment.errors import PipelineError
from alignment.policy.latent_grid import LatentGrid


@dataclass(frozen=True)
class Motion(Structure):
    """M = range(smooth(mean of |frame - frame before| over the pixels and colours of a position)).

    The first frame has the map of the second. A clip in which nothing moves gets ones: credit as it was. What moves is
    where pixels change: both where an object is and where it was.

    Attributes:
        smooth: Standard deviation of a Gaussian, in positions; 0 for none.
        keep_mass: Divide a map by its mean, so that credit moves within a clip and none is lost.
    """

    smooth: float = 0.0
    keep_mass: bool = False

    def __post_init__(self) -> None:
        check_smooth(self.smooth)

    def load(self, *, device: torch.device) -> Changes:
        """Return the computation; there is nothing to load."""
        return Changes(self)


@dataclass(frozen=True)
class Changes:
    """Compares frames with those before."""

    how: Motion

    @torch.no_grad()
    def __call__(self, samples: Sampled, grid: LatentGrid) -> Tensor:
        """Return the maps of clips.

        Raises:
            PipelineError: If samples are pictures.
        """
        frames = samples.media.pixels.shape[1]
        if frames == 1:
            raise PipelineError(
                "source.structure: maps of motion are made from clips, but samples have one frame; choose another "
                "structure, or a pipeline of clips"
            )
        changes = samples.media.pixels.float().diff(dim=1).abs().mean(dim=2)
        moved = torch.cat([changes[:, :1], changes], dim=1)
        there = torch.stack([at_positions(clip, grid, self.how.smooth) for clip in moved])
        return ranged(there, keep_mass=self.how.keep_mass).cpu()
