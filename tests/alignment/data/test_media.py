"""Pictures and clips as they come: every kind is brought to 8-bit RGB or refused, before anything is computed."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from alignment.data.media import PIXELS_AT_MOST, find_clip, find_picture
from alignment.errors import DataError
from evals.medium import Medium

RED = (255, 0, 0)
JPEG_ROUNDING = 12  # of 255: chroma is quantised


def opened(path: Path) -> Image.Image:
    return find_picture(path.parent, path.name).open()


def bomb(path: Path, side: int) -> Path:
    """Write a PNG of a few kilobytes that claims `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * side))
        + chunk(b"IEND", b"")
    )
    return path


def clip(path: Path, frames: int = 5, size: tuple[int, int] = (16, 12)) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for k in range(frames):
            pixels = np.full((size[1], size[0], 3), 40 * k % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return path


def saved(path: Path, image: Image.Image, **how: object) -> Path:
    image.save(path, **how)
    return path


def rotated(path: Path) -> Path:
    image = Image.new("RGB", (8, 4), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    return saved(path, image, exif=exif)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "L", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image = opened(saved(path, Image.new("RGB", (8, 6), RED).convert(mode)))
    assert (image.mode, image.size) == ("RGB", (8, 6))
    if mode in ("RGB", "RGBA", "P", "CMYK"):
        assert np.abs(np.asarray(image).astype(int) - RED).max() <= JPEG_ROUNDING


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    assert opened(saved(tmp_path / "a.png", grey)).getpixel((0, 0)) == (128, 128, 128)


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    shown = opened(saved(tmp_path / "a.png", image))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]


def test_pictures_stand_upright(tmp_path: Path) -> None:
    picture = find_picture(tmp_path, rotated(tmp_path / "a.jpg").name)
    assert picture.size == picture.open().size == (4, 8)


def truncated(path: Path, kind: str) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    saved(path, Image.fromarray(pixels), format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def animated(path: Path) -> Path:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return saved(path, frames[0], save_all=True, append_images=frames[1:])


BAD = {
    "truncated PNG": (lambda path: truncated(path, "PNG"), "damaged or truncated"),
    "truncated JPEG": (lambda path: truncated(path, "JPEG"), "damaged or truncated"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("a red circle"), "is not a picture"),
    "bomb": (lambda path: bomb(path, 20_000), "more than 50,000,000 pixels"),
    "just too large": (lambda path: bomb(path, int(PIXELS_AT_MOST**0.5) + 1), "make it smaller"),
    "no pixels": (lambda path: bomb(path, 0), "is not a picture|damaged"),
    "floats": (lambda path: saved(path, Image.new("F", (4, 4)), format="TIFF"), "floating-point"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused(tmp_path: Path, name: str) -> None:
    make, problem = BAD[name]
    make(tmp_path / "a.png")
    with pytest.raises(DataError, match=problem) as caught:
        find_picture(tmp_path, "a.png")
    assert "a.png" in str(caught.value)


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_animations_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="animated"):
        opened(animated(tmp_path / f"a.{kind}"))


@pytest.mark.parametrize(
    "name",
    ["../a.png", "sub/../../a.png", "~/a.png", "file:///etc/passwd", "http://169.254.169.254/", "C:\\a.png", "a\0.png",
     "", " ", 3, None, ["a.png"], "x" * 5000],
)  # fmt: skip
def test_only_files_of_the_folder_are_opened(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    saved(tmp_path / "a.png", Image.new("RGB", (4, 4)))
    with pytest.raises(DataError):
        find_picture(folder, name)


def test_a_picture_may_not_change_during_the_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (4, 4), "red"))
    picture = find_picture(tmp_path, "a.png")
    saved(path, Image.new("RGB", (4, 4), "blue"))
    with pytest.raises(DataError, match="changed since the run began"):
        picture.open()


def test_clips_are_counted(tmp_path: Path) -> None:
    found = find_clip(tmp_path, clip(tmp_path / "a.mp4").name)
    assert (found.frames, found.size) == (5, (16, 12))
    assert len(found.open()) == 5
    assert found.open()[4].mode == "RGB"


def test_bad_clips_are_refused(tmp_path: Path) -> None:
    whole = clip(tmp_path / "a.mp4", frames=30).read_bytes()
    for content in (b"", b"no video", whole[: len(whole) // 2]):
        (tmp_path / "b.mp4").write_bytes(content)
        with pytest.raises(DataError, match=r"b\.mp4"):
            find_clip(tmp_path, "b.mp4")


def test_so_many_bytes_are_read_and_pipes_are_not(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")  # reading it would wait for ever
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(2**31 + 1)  # of which nothing is on the disk
    for name, says in {"a.png": "a.png is not a file", "b.png": "has 2,147,483,649 bytes, and at most"}.items():
        with pytest.raises(DataError, match=says):
            find_picture(tmp_path, name)
        with pytest.raises(DataError, match=says):
            Medium.file(tmp_path / name).read()
