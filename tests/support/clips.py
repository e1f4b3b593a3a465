"""Clips of every kind that is read, and files that only look like one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

CODECS = {
    ".mp4": ("libx264", "yuv420p"),
    ".mov": ("mpeg4", "yuv420p"),
    ".mkv": ("libx264", "yuv420p"),
    ".webm": ("libvpx", "yuv420p"),
    ".avi": ("mpeg4", "yuv420p"),
    ".gif": ("gif", "rgb8"),
}
"""What is written into each kind of file."""


def written(path: Path, sizes: Sequence[tuple[int, int]], fps: int = 8) -> Path:
    """Write a clip with a frame of each size (width, height), scaled to the first; its reds rise frame by frame."""
    codec, layout = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], layout
        for number, (width, height) in enumerate(sizes):
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[..., 0] = 10 * number % 256
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame = frame.reformat(*sizes[0], format=layout)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
