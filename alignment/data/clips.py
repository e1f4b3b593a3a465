"""The one decoder of clips: which files are read as such, by which reader, and how much of one.

FFmpeg guesses from a file's content what reads it, and some of its formats are scripts that open other files, addresses
and sockets. So the reader is chosen here, by the first bytes and from a short list, and may open nothing else. How much
there is to read is bounded too: a small file may hold any number of pixels, so decoding stops where they are too many.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.container import InputContainer

from alignment.errors import DataError

CLIPS = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif")
"""Endings of the names of clips."""

PIXELS_AT_MOST = 50_000_000
"""Of one picture or frame: 150 MB as RGB. A file of 50 kB can claim eight times as many."""

FRAMES_AT_MOST = 10_000
"""Most frames that are decoded of one clip: seven minutes at 24 frames per second."""

DECODED_AT_MOST = 20_000_000_000
"""Pixels of one clip, all its frames together: 10,000 frames of 1080p, some minutes of decoding."""

KEPT_AT_MOST = 125_000_000
"""Pixels of the frames of one clip that are in memory together: 1.5 GB as the float32 that is scored; 129 frames of
720p are 119 million."""

_EXPECTED = "expected the content of an MP4, MOV, Matroska, WebM, AVI or GIF file"
_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
"""What an MP4 or MOV may begin with, behind its length."""


@dataclass(frozen=True)
class Footage:
    """What a clip turned out to be when it was decoded to its end.

    Attributes:
        frames: How many.
        size: (width, height) of all of them.
        fps: Frames per second, from the stream or from the times of its frames; None for a single frame.
    """

    frames: int
    size: tuple[int, int]
    fps: float | None


def survey(name: str, content: bytes, kept: Callable[[int], int] = lambda frames: frames) -> Footage:
    """Decode a clip to its end, keeping nothing.

    Args:
        name: How messages call it.
        content: The file.
        kept: Returns how many of so many frames will be read; all by default.

    Raises:
        DataError: If it is not a clip, is damaged, or is larger than what is read.
    """
    count, first, last, said, size = 0, None, None, None, (0, 0)
    for frame, rate in _decoded(name, content):
        count, last, said, size = count + 1, frame.time, rate, (frame.width, frame.height)
        first = last if count == 1 else first
        if kept(count) * size[0] * size[1] > KEPT_AT_MOST:
            raise DataError(
                f"{name} has {count} frames or more of {size[0]} x {size[1]}, and {KEPT_AT_MOST:,} pixels are read of "
                "a clip; cut or scale it"
            )
    if not count:
        raise DataError(f"{name} has no frames; {_EXPECTED}")
    spent = last - first if first is not None and last is not None else 0.0
    measured = (count - 1) / spent if spent > 0 else None
    return Footage(count, size, None if count == 1 else said or measured)


def read_frames(name: str, content: bytes, wanted: set[int] | None = None) -> list[np.ndarray]:
    """Return frames of a clip that was surveyed, each `[H, W, 3]` uint8.

    Args:
        name: How messages call it.
        content: The file.
        wanted: Which, counted from 0; null takes all. Decoding stops behind the last of them.

    Raises:
        DataError: As `survey` does.
    """
    frames: list[np.ndarray] = []
    for number, (frame, _) in enumerate(_decoded(name, content)):
        if wanted is None or number in wanted:
            frames.append(frame.to_ndarray(format="rgb24"))
        if wanted is not None and number >= max(wanted):
            break
    return frames


def _decoded(name: str, content: bytes) -> Iterator[tuple[av.VideoFrame, float | None]]:
    """Yield the frames of a clip, each with the frame rate of its stream."""
    if not content:
        raise DataError(f"{name} is empty; {_EXPECTED}")
    reader, count, decoded, size = _reader(content), 0, 0, None
    if reader is None:
        raise DataError(f"{name} is not a video: it begins with {content[:12]!r}; {_EXPECTED}")
    try:
        # The content comes from memory, so that no protocol is needed to read it, and none is allowed.
        with av.open(
            io.BytesIO(content), format=reader, options={"protocol_whitelist": "none"}, metadata_errors="replace"
        ) as container:
            stream = _stream(name, container)
            for frame in container.decode(stream):
                size, decoded = size or (frame.width, frame.height), decoded + frame.width * frame.height
                _check(name, frame, size, count)
                if count == FRAMES_AT_MOST or decoded > DECODED_AT_MOST:
                    raise DataError(
                        f"{name} has more than {count:,} frames ({size[0]} x {size[1]}), and no more are read; cut it"
                    )
                yield frame, float(stream.average_rate) if stream.average_rate else None
                count += 1
    except av.FFmpegError as error:
        raise DataError(f"{name} is not a video, or damaged after {count} frames: {error.strerror}") from error


def _reader(content: bytes) -> str | None:
    """Return FFmpeg's name of what reads a file that begins so, or None where nothing may."""
    if content[4:8] in _ATOMS:
        return "mov"
    if content[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if content[:4] == b"RIFF" and content[8:12] == b"AVI ":
        return "avi"
    return "gif" if content[:6] in (b"GIF87a", b"GIF89a") else None


def _stream(name: str, container: InputContainer) -> av.VideoStream:
    """Return the video stream, set to refuse a frame of too many pixels before memory is taken for it."""
    if not container.streams.video:
        raise DataError(f"{name} is not a video, or damaged after 0 frames: it has no video stream")
    stream = container.streams.video[0]
    codec = stream.codec_context
    if codec is None:  # pyright: ignore[reportUnnecessaryComparison]  # where FFmpeg has no decoder
        raise DataError(f"{name} is of a kind of video that nothing here decodes; save it as H.264 in an MP4 file")
    if codec.width * codec.height > PIXELS_AT_MOST:
        raise DataError(_too_large(name, codec.width, codec.height))
    codec.options = {"max_pixels": str(PIXELS_AT_MOST)}
    return stream


def _check(name: str, frame: av.VideoFrame, size: tuple[int, int], number: int) -> None:
    if frame.width * frame.height > PIXELS_AT_MOST:
        raise DataError(_too_large(name, frame.width, frame.height))
    if (frame.width, frame.height) != size:
        raise DataError(
            f"{name} changes its size: frame {number} is {frame.width} x {frame.height}, those before are "
            f"{size[0]} x {size[1]}; scale it to one size"
        )


def _too_large(name: str, width: int, height: int) -> str:
    return f"{name} has frames of {width} x {height} pixels, more than {PIXELS_AT_MOST:,}; scale it"
