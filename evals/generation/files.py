"""Pictures and clips as files that lose nothing of their 8 bits."""

from __future__ import annotations

import io

import av
import numpy as np
from torch import Tensor

from alignment.data.frame_rate import EXPORTED
from alignment.reports.pictures import frames

QUICK = 1
"""Compression of PNG files: a tenth of the time of the usual, for files that are a tenth larger."""


def encoded(pixels: Tensor, fps: float | None) -> tuple[bytes, str]:
    """Return the file of a picture or clip `[F, 3, H, W]` in [0, 1], and the ending of its name.

    A clip is H.264 in RGB without loss, which players of videos may not know; what is scored is what was made.
    """
    shown = frames(pixels)
    buffer = io.BytesIO()
    if len(shown) == 1:
        shown[0].save(buffer, "PNG", compress_level=QUICK)
        return buffer.getvalue(), ".png"
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=round(fps or EXPORTED), options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = *shown[0].size, "rgb24"
        for frame in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue(), ".mp4"
