"""Credit where the prompt has a say: how much it changes the model's output at each position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.credit.structures.base import Sampled, Structure
from alignment.credit.structures.maps import check_smooth, in_time, ranged, smoothed
from alignment.data.batches import Batch
from alignment.errors import ConfigError
from alignment.policy.latent_grid import LatentGrid
from samplers.paths.path import noised


@dataclass(frozen=True)
class PromptDifference(Structure):
    """M = range(smooth(mean over times and channels of |v(x_t, prompt) - v(x_t, null)|)).

    x_t is the sample noised to t, the same for both prompts; v what the pipeline makes of them with its own guidance.
    It costs two passes of the network for each sample and time, without graph.

    Attributes:
        times: Where the two are compared, in (0, 1], 1 being noise.
        null: The other prompt.
        smooth: Standard deviation of a Gaussian, in positions; 0 for none.
        keep_mass: Divide a map by its mean, so that credit moves within a sample and none is lost.
        batch_size: Samples at once.
    """

    times: tuple[float, ...] = (0.9, 0.7, 0.5)
    null: str = ""
    smooth: float = 0.0
    keep_mass: bool = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_smooth(self.smooth, self.batch_size)
        if not self.times or not all(0 < t <= 1 for t in self.times):
            raise ConfigError(f"structure needs times in (0, 1], at least one, got {list(self.times)}")

    def prompts(self) -> tuple[str, ...]:
        """Return the other prompt."""
        return (self.null,)

    def load(self, *, device: torch.device) -> Differences:
        """Return the computation; the policy is asked."""
        return Differences(self)


@dataclass(frozen=True)
class Differences:
    """Compares what the policy makes of two prompts."""

    how: PromptDifference

    @torch.no_grad()
    def __call__(self, samples: Sampled, grid: LatentGrid) -> Tensor:
        """Return the maps of samples."""
        policy, sizes = samples.policy, torch.zeros(len(samples.media), grid.frames, grid.height, grid.width)
        for rows in policy.form.calls(samples.prompts):
            for part in torch.as_tensor(rows).split(self.how.batch_size):
                sizes[part] = self._size(samples, part, grid)
        return ranged(sizes, keep_mass=self.how.keep_mass)

    def _size(self, samples: Sampled, rows: Tensor, grid: LatentGrid) -> Tensor:
        """Return how far apart the outputs of these rows are, position by position, as they come."""
        x0, seeds = samples.x0[rows].to(samples.policy.device), samples.seeds[rows]
        noise = samples.draw.normal("prompt difference", seeds, 0, x0.shape[1:]).to(x0.device)
        points = []
        for time in self.how.times:
            t = torch.full((len(rows),), time, device=x0.device)
            points.append((noised(samples.policy.path, x0, noise, t), t))
        outputs: dict[str, list[Tensor]] = {"told": [], "null": []}
        told = tuple(samples.prompts[row] for row in rows.tolist())
        for name, prompts in {"told": told, "null": (self.how.null,) * len(rows)}.items():
            batch = Batch(prompts, seeds, seeds, torch.zeros_like(seeds))
            samples.policy.visit(batch, points, lambda k, v, to=outputs[name]: to.append(v.float()), grad=False)
        apart = torch.stack([(a - b).abs() for a, b in zip(*outputs.values(), strict=True)]).mean(dim=0)
        channels = [1 + axis for axis, size in enumerate(grid.shape) if size == 1]
        there = (apart.mean(dim=channels) if channels else apart).reshape(-1, grid.frames, grid.height, grid.width)
        return torch.stack([in_time(smoothed(each, self.how.smooth), grid.frames) for each in there]).cpu()
