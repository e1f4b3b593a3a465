"""Pictures and clips that come with a prompt: found inside the data folder, decoded whole, and only then believed.

A file's header may lie, so nothing counts as readable until every pixel has been decoded once. What a camera or an
editor leaves in a file (orientation, alpha, palette, CMYK, 16 bits) is brought to 8-bit RGB here, so that a pipeline
meets one kind of picture.
"""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
import xxhash
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from alignment.data.clips import CLIPS, PIXELS_AT_MOST, read_frames, survey
from alignment.errors import DataError
from reward_models.foreign import ForeignCode

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""Decoders that are tried; every other one stays out of reach of a file's content."""

BYTES_AT_MOST = 2**31
"""Of one file: an hour of 1080p."""

_CLIPS_IN_MEMORY = 4

_IN_MEMORY = 64
"""Decoded pictures kept: a group's rows, and the microbatches made of them, ask for the same ones again."""


@dataclass(frozen=True)
class Picture:
    """A picture that was decoded once.

    Attributes:
        path: Where it is, or what it was called when it was put into a table.
        digest: Of the file's content, for the keys of caches; two files with one digest are the same picture.
        size: (width, height) after turning it upright.
        content: The bytes of the file, where a table holds it.
    """

    path: Path
    digest: str
    size: tuple[int, int]
    content: bytes | None = field(default=None, repr=False, compare=False)

    def open(self) -> Image.Image:
        """Return it as upright 8-bit RGB.

        Raises:
            DataError: If the file is gone or changed its content since it was checked.
        """
        return _decoded(self)

    def pixels(self, width: int, height: int) -> Tensor:
        """Return it scaled to a size, `[3, height, width]` in [0, 1].

        Raises:
            DataError: As `open` does.
        """
        scaled = np.array(self.open().resize((width, height), Image.Resampling.LANCZOS))
        return torch.from_numpy(scaled).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class Clip:
    """A video file that was decoded once.

    Attributes:
        path: Where it is.
        digest: Of the file's content.
        size: (width, height).
        frames: How many.
        fps: Frames per second; None for a single frame.
    """

    path: Path
    digest: str
    size: tuple[int, int]
    frames: int
    fps: float | None = None

    def open(self) -> list[Image.Image]:
        """Return its frames as 8-bit RGB.

        Raises:
            DataError: If the file is gone or changed its content since it was checked.
        """
        return _frames(self)


def find_medium(folder: Path, value: object) -> Picture | Clip:
    """Return the clip or, by any other name, the picture that a record of a data file in `folder` brings.

    Raises:
        DataError: As `find_clip` and `find_picture` do.
    """
    is_clip = isinstance(value, str) and value.lower().endswith(CLIPS)
    return find_clip(folder, value) if is_clip else find_picture(folder, value)


def find_clip(folder: Path, value: object) -> Clip:
    """Return the clip that a record of a data file in `folder` brings.

    Args:
        folder: Where media have to be.
        value: A path relative to the folder.

    Raises:
        DataError: If there is no such file inside the folder, or no video that can be decoded to its end.
    """
    path = find(folder, value)
    content = read_file(path)
    found = survey(str(path), content)
    return Clip(path, xxhash.xxh3_128_hexdigest(content), found.size, found.frames, found.fps)


def find_picture(folder: Path, value: object) -> Picture:
    """Return the picture that a record of a data file in `folder` brings: a file's name, or its content.

    Args:
        folder: Where media have to be.
        value: A path relative to the folder, or what `datasets` makes of a picture: an object with "bytes" or "path".

    Raises:
        DataError: If there is no such file inside the folder, or it is not a picture.
    """
    if isinstance(value, dict) and {"bytes", "path"} & value.keys():
        content = value.get("bytes")
        if isinstance(content, bytes):
            return _described(Path(str(value.get("path") or "a picture in the table")), content, embedded=content)
        value = value.get("path")
    path = find(folder, value)
    return _described(path, read_file(path))


def find(folder: Path, name: object) -> Path:
    """Return the file that a record of a data file in `folder` calls `name`.

    Raises:
        DataError: If that is not a relative path, leads out of the folder, or is not a file.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise DataError(f"{name!r:.80} is not the name of a file")
    if "://" in name or name.startswith("~") or _absolute(name):
        raise DataError(
            f"{name:.80} is not a path relative to the data file; nothing is fetched, copy it beside the file"
        )
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # missing, a circle of links, a name too long
        raise DataError(f"there is no file {folder / name}") from error
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{name:.80} leads out of {folder}; media have to be inside the data file's folder")
    if not path.is_file():
        raise DataError(f"{folder / name} is not a file")
    return path


def leads_out(name: str) -> bool:
    """Return whether a path that may not be there yet leads out of the folder that it counts from."""
    return _absolute(name) or ".." in (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)


def _absolute(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).drive)


def _described(path: Path, content: bytes, embedded: bytes | None = None) -> Picture:
    return Picture(path, xxhash.xxh3_128_hexdigest(content), _decode(path, content).size, embedded)


def picture_of(name: str, content: bytes) -> Image.Image:
    """Return the picture in `content` as upright 8-bit RGB; `name` is how messages call it.

    Raises:
        DataError: As `check_picture` does.
    """
    return _decode(Path(name), content)


@functools.lru_cache(_IN_MEMORY)
def _decoded(picture: Picture) -> Image.Image:
    content = picture.content if picture.content is not None else read_file(picture.path)
    if xxhash.xxh3_128_hexdigest(content) != picture.digest:
        raise DataError(f"{picture.path} changed since the run began; media must stay as they were")
    return _decode(picture.path, content)


@functools.lru_cache(_CLIPS_IN_MEMORY)
def _frames(clip: Clip) -> list[Image.Image]:
    content = read_file(clip.path)
    if xxhash.xxh3_128_hexdigest(content) != clip.digest:
        raise DataError(f"{clip.path} changed since the run began; media must stay as they were")
    return [Image.fromarray(frame) for frame in read_frames(str(clip.path), content)]


def read_file(path: Path) -> bytes:
    """Return the content of a picture or clip.

    Raises:
        DataError: If it cannot be read, is a pipe or a device, which may have no end, or has more bytes than is read.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a file")
        if (size := path.stat().st_size) > BYTES_AT_MOST:
            raise DataError(f"{path} has {size:,} bytes, and at most {BYTES_AT_MOST:,} are read; cut or compress it")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _decode(path: Path, content: bytes) -> Image.Image:
    if not content:
        raise DataError(f"{path} is empty")

    def broken(error: BaseException) -> DataError:
        if isinstance(error, UnidentifiedImageError):
            return DataError(f"{path} is not a picture (expected {', '.join(_FORMATS)})")
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            return DataError(f"{path} has more than {PIXELS_AT_MOST:,} pixels; make it smaller")
        return DataError(f"{path} is damaged or truncated: {str(error) or error!r}")

    with ForeignCode(broken), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_header(path, image)
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image))


def _check_header(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > PIXELS_AT_MOST:
        raise DataError(
            f"{path} has {width} x {height} = {width * height:,} pixels, more than {PIXELS_AT_MOST:,}; make it smaller"
        )
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point numbers of no known range; save it with 8 or 16 bits")
    # A phone's MPO file holds the picture first, then what its other lenses saw.
    if image.format != "MPO" and _frame_count(image) > 1:
        raise DataError(f"{path} is animated; one picture is wanted: save the frame that is meant")


def _frame_count(image: Any) -> int:
    return image.n_frames if hasattr(image, "n_frames") else 1


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB: 16 bits scaled down (Pillow would clip them), what is transparent laid on white."""
    if image.mode.startswith("I"):
        sixteen = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((sixteen // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
