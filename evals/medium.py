"""A picture or clip that is to be scored: a file, or the bytes that a table holds."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from alignment.data.clips import CLIPS, read_frames, survey
from alignment.data.media import picture_of, read_file
from alignment.errors import DataError
from reward_models.base import Media

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FRAMES = 16
"""Frames taken of a clip, evenly, the first and the last among them."""


@dataclass(frozen=True)
class Medium:
    """One picture or clip.

    Attributes:
        name: How tables and messages call it; its ending gives its kind.
        path: Its file; null where `content` has it.
        content: Its bytes.
    """

    name: str
    path: Path | None = None
    content: bytes | None = None

    @classmethod
    def file(cls, path: Path) -> Medium:
        """Return the medium in a file."""
        return cls(path.name, path)

    @property
    def moving(self) -> bool:
        """Whether it is a clip."""
        return Path(self.name).suffix.lower() in CLIPS

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            DataError: If the file cannot be read, or nothing is in it.
        """
        if self.content is not None:
            return self.content
        assert self.path is not None
        content = read_file(self.path)
        if not content:
            raise DataError(f"{self.path} is empty")
        return content

    @functools.cached_property
    def digest(self) -> str:
        """Return what its bytes are known by."""
        return xxhash.xxh3_128_hexdigest(self.read())

    def pixels(self, frames: int = FRAMES) -> Tensor:
        """Return its frames, `[F, 3, H, W]` float32 in [0, 1]; a picture is one frame.

        Raises:
            DataError: As `levels` does.
        """
        return self.media(frames).pixels[0]

    def media(self, frames: int = FRAMES) -> Media:
        """Return it as what a reward model takes: one row.

        Args:
            frames: Most frames of a clip.

        Raises:
            DataError: As `levels` does.
        """
        return as_media([self.levels(frames)])

    def levels(self, frames: int = FRAMES) -> Levels:
        """Decode it, and keep of a clip the frames per second that are left of it; what was just decoded is kept.

        Args:
            frames: Most frames of a clip.

        Raises:
            DataError: If it is damaged, empty, or larger than anything sensible.
        """
        key = (self.digest, self.moving, frames)
        found = _DECODED.get(key)
        return _DECODED.keep(key, self._decode(frames)) if found is None else found

    def _decode(self, frames: int) -> Levels:
        place, content = str(self.path or self.name), self.read()
        if not self.moving:
            return Levels([np.array(picture_of(place, content))], fps=None)
        found = survey(place, content, lambda count: min(count, frames))
        # Two passes over the file, so that no more than the chosen frames are in memory.
        chosen = np.linspace(0, found.frames - 1, min(frames, found.frames)).round().astype(int).tolist()
        fps = None
        if found.fps is not None and len(chosen) > 1:
            fps = found.fps * (len(chosen) - 1) / (found.frames - 1)
        return Levels(read_frames(place, content, set(chosen)), fps=fps)


@dataclass(frozen=True)
class Levels:
    """A medium that was decoded: a quarter of the memory that its scoring takes.

    Attributes:
        frames: Each `[H, W, 3]` uint8.
        fps: Frames per second of a clip; None for pictures.
    """

    frames: list[np.ndarray]
    fps: float | None

    @property
    def kind(self) -> tuple[object, ...]:
        """What media must share to be rows of one batch: shape and rate."""
        return (*self.shape, self.fps)

    @property
    def shape(self) -> tuple[int, ...]:
        """Frames, height, width and channels."""
        return (len(self.frames), *self.frames[0].shape)

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return sum(frame.nbytes for frame in self.frames)

    @property
    def size(self) -> int:
        """Its pixels, all frames together."""
        return len(self.frames) * self.frames[0].shape[0] * self.frames[0].shape[1]


class _Decoded:
    """What was decoded last, by what it was decoded from: several rewards and extractors look at it in turn."""

    def __init__(self, most: int) -> None:
        """Begin with nothing, and never keep more than `most` bytes."""
        self._most, self._kept, self._bytes = most, OrderedDict[tuple[str, bool, int], Levels](), 0

    def get(self, key: tuple[str, bool, int]) -> Levels | None:
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: tuple[str, bool, int], levels: Levels) -> Levels:
        if levels.bytes <= self._most:
            self._kept[key] = levels
            self._bytes += levels.bytes
        while self._bytes > self._most:
            self._bytes -= self._kept.popitem(last=False)[1].bytes
        return levels


_DECODED = _Decoded(most=2**26)


def as_media(batch: Sequence[Levels], alter: Callable[[Tensor], Tensor] | None = None) -> Media:
    """Return media of one kind as rows for a reward model.

    Args:
        batch: The media, one or more.
        alter: What is done to the frames of each, `[F, 3, H, W]` in [0, 1]; it keeps their shape.
    """
    count, height, width, channels = len(batch[0].frames), *batch[0].frames[0].shape
    pixels = torch.empty(len(batch), count, channels, height, width)  # filled in place: one copy, not three
    for row, levels in zip(pixels, batch, strict=True):
        for filled, frame in zip(row, levels.frames, strict=True):
            filled.copy_(torch.from_numpy(frame).permute(2, 0, 1))
        row.div_(255)
        if alter is not None:
            row.copy_(alter(row))
    return Media(pixels, fps=batch[0].fps)
