"""A state as kernels walk over it: positions, each with a few channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

CHANNELS = 256
"""Most channels of a position that are held in registers at once."""
TILE = 1024
"""Numbers of each tensor that a program holds at once."""
_PIECE = 256
"""Numbers that stand for one position where a state is one position."""


@dataclass(frozen=True)
class MemoryLayout:
    """A contiguous state `[slabs, positions, channels]`, or `[slabs, channels, positions]`, whichever way it lies.

    Attributes:
        slabs: Stretches of memory within which positions are evenly spaced.
        positions: Of a slab.
        channels: Of a position.
        packed: Whether the channels of a position are neighbours, as in tokens, and not its positions.
        numbers: Of a slab; fewer than positions times channels where the last position is cut short.
    """

    slabs: int
    positions: int
    channels: int
    packed: bool
    numbers: int

    @property
    def strides(self) -> tuple[int, int]:
        """Distance between (neighbouring positions, channels of one)."""
        return (self.channels, 1) if self.packed else (1, self.positions)

    @property
    def block(self) -> tuple[int, int]:
        """Powers of two: (positions, channels) that a program holds."""
        channels = 1 << (self.channels - 1).bit_length()
        return max(1, min(1 << (self.positions - 1).bit_length(), TILE // channels)), channels

    @property
    def blocks(self) -> int:
        """Programs that a slab takes."""
        return -(-self.positions // self.block[0])

    def reduced(self, elements: Tensor) -> Tensor:
        """Return the sums over channels, `[..., slabs * positions]`, of `[..., slabs * numbers]`."""
        if self.packed:
            return elements.unflatten(-1, (self.positions, self.channels)).sum(-1)
        return elements.unflatten(-1, (self.slabs, self.channels, self.positions)).sum(-2).flatten(-2)


def layout_of(state: Sequence[int], positions: Sequence[int]) -> MemoryLayout | None:
    """Return the layout of a contiguous state whose positions are the axes along which a map varies.

    Args:
        state: Shape of a row.
        positions: Shape of a map that broadcasts against it.

    Returns:
        None where a position's channels are not evenly spaced, or too many for registers.
    """
    along = [axis for axis, (n, m) in enumerate(zip(state, positions, strict=True)) if m == 1 < n]
    if not along:
        return MemoryLayout(1, math.prod(state), 1, packed=False, numbers=math.prod(state))
    first, last = along[0], along[-1]
    outer, channels, inner = (math.prod(state[i:j]) for i, j in ((0, first), (first, last + 1), (last + 1, len(state))))
    if channels > CHANNELS or any(m != 1 for m in positions[first : last + 1]):
        return None
    if inner == 1:
        return MemoryLayout(1, outer, channels, packed=True, numbers=outer * channels)
    return MemoryLayout(outer, inner, channels, packed=False, numbers=channels * inner)


def in_pieces(numbers: int) -> MemoryLayout:
    """Return the layout of a state that is one position: pieces of it stand for positions."""
    return MemoryLayout(1, -(-numbers // _PIECE), min(_PIECE, numbers), packed=True, numbers=numbers)
