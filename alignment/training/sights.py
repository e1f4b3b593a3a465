"""What a watch sees of pictures beside their scores: how varied they are, how far they have moved, how they look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment.config.run import Watch
from alignment.features.base import Extract, Extractor, apart
from alignment.features.looks import Looks

DIVERSITY, DRIFT = "watch/diversity", "watch/drift"
LOOKS = tuple(f"watch/{name}" for name in Looks.names)


@dataclass
class Sights:
    """Describes the pictures of evaluations.

    Attributes:
        also: What is asked for, as the config says.
        prompts: How many are held out; pictures come image by image, prompt by prompt.
        extractor: What describes pictures for distances between them.
        extract: The same, loaded.
        base: Features of the pictures before training, `[n, d]`; None until they were seen.
    """

    also: tuple[str, ...]
    prompts: int
    extractor: Extractor
    extract: Extract
    base: Tensor | None = None

    @classmethod
    def of(cls, watch: Watch, prompts: int, device: torch.device) -> Sights | None:
        """Return what a watch sees with; None where only scores are asked for."""
        if not watch.also:
            return None
        return cls(watch.also, prompts, watch.features, watch.features.load(device=device))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what is measured."""
        kinds = {"diversity": (DIVERSITY,), "drift": (DIVERSITY, DRIFT), "looks": LOOKS}
        return tuple(dict.fromkeys(name for kind in self.also for name in kinds[kind]))

    @torch.no_grad()
    def see(self, pixels: Tensor) -> Tensor:
        """Return what pictures look like, and their features, `[B, looks + d]` on the CPU.

        Args:
            pixels: `[B, F, 3, H, W]` in [0, 1].
        """
        looks = Looks().load(device=pixels.device)(pixels)
        return torch.cat([looks, self.extract(pixels).to(looks)], dim=1).cpu()

    def scores(self, seen: Tensor) -> Mapping[str, Tensor]:
        """Return what is measured of each picture, `[n]`; the first call is that of the pictures before training.

        Diversity is the distance of two pictures of a prompt, at the first of them; each is of one pair only, so that
        what is left to chance is independent. It is NaN at the others.

        Args:
            seen: Rows of `see`, image by image, prompt by prompt.
        """
        looks, features = seen.split([len(LOOKS), seen.shape[1] - len(LOOKS)], dim=1)
        if self.base is None:
            self.base = features
        own, count = torch.full((len(seen),), torch.nan), self.prompts
        for start in range(0, len(seen) - 2 * count + 1, 2 * count):
            own[start : start + count] = self._apart(
                features[start : start + count], features[start + count : start + 2 * count]
            )
        moved = torch.full((len(seen),), torch.nan)
        known = min(len(seen), len(self.base))
        moved[:known] = self._apart(features[:known], self.base[:known])
        found = {DIVERSITY: own, DRIFT: moved, **dict(zip(LOOKS, looks.float().unbind(1), strict=True))}
        return {name: found[name] for name in self.metrics}

    def _apart(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(apart(x.numpy(), y.numpy(), self.extractor.distance)).float()
