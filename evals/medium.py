"""A picture or clip that is to be scored: a file, or the bytes that a table holds."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import xxhash
from av.error import FFmpegError
from torch import Tensor

from alignment.errors import DataError
from alignment.media import PIXELS_AT_MOST, picture_of

CLIPS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FRAMES = 16
"""Frames taken of a clip, evenly, the first and the last among them."""
_FRAMES_AT_MOST = 10_000


@dataclass(frozen=True)
class Medium:
    """One picture or clip.

    Attributes:
        name: How tables and messages call it; its ending says what it is.
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
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        if not content:
            raise DataError(f"{self.path} is empty")
        return content

    @functools.cached_property
    def digest(self) -> str:
        """Return what its bytes are known by."""
        return xxhash.xxh3_128_hexdigest(self.read())

    def pixels(self, frames: int = FRAMES) -> Tensor:
        """Return its frames, `[F, 3, H, W]` float32 in [0, 1]; a picture is one frame.

        Args:
            frames: Most frames of a clip.

        Raises:
            DataError: If it is damaged, empty, or larger than anything sensible.
        """
        place, content = str(self.path or self.name), self.read()
        if not self.moving:
            return _tensor([np.asarray(picture_of(place, content))])
        return _tensor(_evenly(place, content, frames))


def _tensor(frames: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


def _evenly(name: str, content: bytes, count: int) -> list[np.ndarray]:
    """Return `count` frames of a clip, or all where it has fewer; two passes, so that only those are kept."""
    total = sum(1 for _ in _frames(name, content))
    if total == 0:
        raise DataError(f"{name} has no frames; expected a clip ({', '.join(CLIPS)})")
    chosen = set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
    return [frame.to_ndarray(format="rgb24") for i, frame in enumerate(_frames(name, content)) if i in chosen]


def _frames(name: str, content: bytes) -> Iterator[av.VideoFrame]:
    try:
        with av.open(io.BytesIO(content)) as container:
            if not container.streams.video:
                raise DataError(f"{name} has no pictures in it; expected a clip ({', '.join(CLIPS)})")
            for i, frame in enumerate(container.decode(video=0)):
                if frame.width * frame.height > PIXELS_AT_MOST or i >= _FRAMES_AT_MOST:
                    raise DataError(
                        f"{name}: at most {PIXELS_AT_MOST:,} pixels a frame and {_FRAMES_AT_MOST:,} frames are read"
                    )
                yield frame
    except FFmpegError as error:
        raise DataError(f"{name} is damaged or no clip: {error.strerror or error}") from error
