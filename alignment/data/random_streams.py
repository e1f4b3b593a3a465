"""Every random number of a run, keyed by what it is for.

A stream's seed is a hash of (run seed, purpose, numbers), never a generator's history: batch split, rank and resume do
not change it, and there is no generator state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """The random streams of a run.

    Attributes:
        seed: The run's seed.
    """

    seed: int

    def key(self, purpose: str, *numbers: int) -> int:
        """Return the 63-bit seed of one stream."""
        text = ":".join([str(self.seed), purpose, *map(str, numbers)])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def keys(self, purpose: str, numbers: Tensor) -> Tensor:
        """Return one seed per number, int64, shaped like `numbers`."""
        return torch.tensor([self.key(purpose, n) for n in numbers.flatten().tolist()]).reshape(numbers.shape)

    def generator(self, purpose: str, *numbers: int) -> torch.Generator:
        """Return a CPU generator at the start of one stream."""
        return torch.Generator().manual_seed(self.key(purpose, *numbers))

    def normal(self, purpose: str, seeds: Tensor, k: int, shape: torch.Size) -> Tensor:
        """Return standard normal noise `[n, *shape]` on the CPU, row i keyed by (purpose, seeds[i], k)."""
        return torch.stack([torch.randn(shape, generator=row) for row in self._in_turn(purpose, seeds, k)])

    def uniform(self, purpose: str, seeds: Tensor, k: int) -> Tensor:
        """Return uniform numbers in [0, 1), `[n]` on the CPU, keyed as in `normal`."""
        return torch.stack([torch.rand((), generator=row) for row in self._in_turn(purpose, seeds, k)])

    def _in_turn(self, purpose: str, seeds: Tensor, k: int) -> Iterator[torch.Generator]:
        """Yield the same generator at the start of each row's stream: making one costs as much as a small row."""
        generator = torch.Generator()
        for seed in seeds.tolist():
            yield generator.manual_seed(self.key(purpose, seed, k))
