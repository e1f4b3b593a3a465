"""Media as people see them: captioned grids, pictures and clips as bytes."""

from __future__ import annotations

import io
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import av
import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from reward_models.base import Media

PICTURE_WIDTH = 160
"""Least width of a picture in a grid, in pixels; smaller ones are enlarged by a whole factor and stay sharp."""
CAPTION_LINES = 3
FONT_SIZE = 11
MOMENTS = 5
"""Frames of a clip that stand for it where nothing can move."""


def printable(text: str) -> str:
    """Return `text` on one line, without control and format characters: a prompt must not drive a terminal."""
    spaced = " ".join(text.split())
    return "".join(letter for letter in spaced if unicodedata.category(letter)[0] != "C")


def frames(pixels: Tensor) -> list[Image.Image]:
    """Return the frames of one clip, `[F, 3, H, W]` in [0, 1]; a picture is a clip of one frame."""
    array = (pixels.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(frame) for frame in array]


def heat(media: Media, maps: Tensor) -> Media:
    """Return samples under their maps: violet where little of their credit went, yellow where most of it did.

    Args:
        media: The samples, F frames each.
        maps: `[B, frames, height, width]`, >= 0; each is shown against its own greatest number.
    """
    count = media.pixels.shape[1]
    causal = maps.shape[1] > 1 and (count - 1) % (maps.shape[1] - 1) == 0
    each = (count - 1) // (maps.shape[1] - 1) if causal else 0
    when = [-(-f // each) if causal else f * maps.shape[1] // count for f in range(count)]
    shown = interpolate(maps[:, when], size=media.pixels.shape[-2:], mode="nearest")
    shown = shown / shown.flatten(1).amax(dim=1)[:, None, None, None].clamp(min=1e-12)
    colours = torch.from_numpy(matplotlib.colormaps["viridis"](shown.numpy())[..., :3]).float().movedim(-1, 2)
    grey = media.pixels.mean(dim=2, keepdim=True)
    return Media(0.45 * grey + 0.55 * colours, fps=media.fps)


def encode(picture: Image.Image, kind: str = "PNG") -> bytes:
    """Return the bytes of a picture file."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=88) if kind == "JPEG" else picture.save(buffer, format=kind)
    return buffer.getvalue()


def encode_clip(clip: Sequence[Image.Image], fps: float) -> bytes:
    """Return an MP4 (H.264) of `clip`, which any browser plays; odd sizes lose their last row or column."""
    width, height = (size - size % 2 for size in clip[0].size)
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in clip:
            array = np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def moments(media: Media) -> Media:
    """Return each clip as one wide picture: a few of its frames, from the first to the last, left to right."""
    count = media.pixels.shape[1]
    picked = torch.linspace(0, count - 1, min(MOMENTS, count)).round().long()
    return Media(torch.cat(media.pixels[:, picked].unbind(1), dim=-1)[:, None], fps=None)


def encode_loop(clip: Sequence[Image.Image], fps: float) -> bytes:
    """Return an animated WebP of `clip`, which plays for ever wherever a picture may stand."""
    buffer = io.BytesIO()
    milliseconds = round(1000 / fps)
    clip[0].save(
        buffer, format="WEBP", save_all=True, append_images=clip[1:], duration=milliseconds, loop=0, quality=80
    )
    return buffer.getvalue()


def grid(media: Media, captions: Sequence[str], notes: Sequence[str], width: int = PICTURE_WIDTH) -> list[Image.Image]:
    """Return the frames of one grid that shows every row of `media` over its caption and its note.

    Args:
        media: What to show; a grid of pictures has one frame.
        captions: Text under each, wrapped to three lines.
        notes: A short line above each caption, such as the reward.
        width: Least width of each picture, in pixels.
    """
    clips = [frames(row) for row in media.pixels]
    factor = max(1, math.ceil(width / media.pixels.shape[-1]))
    shown = (media.pixels.shape[-1] * factor, media.pixels.shape[-2] * factor)
    columns = max(1, min(len(clips), 8, 1600 // shown[0]))
    cell = (shown[0] + 12, shown[1] + 12 + (CAPTION_LINES + 1) * (FONT_SIZE + 4))
    canvas = Image.new("RGB", (columns * cell[0] + 12, math.ceil(len(clips) / columns) * cell[1] + 12), "white")
    corners = [(12 + i % columns * cell[0], 12 + i // columns * cell[1]) for i in range(len(clips))]
    for corner, caption, note in zip(corners, captions, notes, strict=True):
        _write_caption(canvas, (corner[0], corner[1] + shown[1] + 3), shown[0], caption, note)
    result = []
    for index in range(media.pixels.shape[1]):
        frame = canvas.copy()
        for corner, clip in zip(corners, clips, strict=True):
            frame.paste(clip[index].resize(shown, Image.Resampling.NEAREST), corner)
        result.append(frame)
    return result


def contact_sheet(media: Media, captions: Sequence[str], notes: Sequence[str]) -> Image.Image:
    """Return one picture of a grid of clips, a few moments of each side by side, for where nothing can move."""
    (sheet,) = grid(moments(media), captions, notes, 2 * PICTURE_WIDTH)
    return sheet


def _write_caption(canvas: Image.Image, corner: tuple[int, int], width: int, caption: str, note: str) -> None:
    # Matplotlib ships this font; Pillow's own has Latin letters only.
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", FONT_SIZE)
    draw = ImageDraw.Draw(canvas)
    letters = max(4, int(width / font.getlength("n")))
    lines = textwrap.wrap(printable(caption), letters, max_lines=CAPTION_LINES, placeholder=" …")
    draw.text(corner, printable(note), fill="#1a56b0", font=font)
    for number, line in enumerate(lines, start=1):
        draw.text((corner[0], corner[1] + number * (FONT_SIZE + 4)), line, fill="#333333", font=font)
