"""The form of questions: what is understood, and why something is not."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from reward_models.serving.wire import JSON, TENSORS, Limits, Refusal, read, write
from tests.support.questions import ASKED, LEVELS, SMALL, drawing, picture, tensors


@pytest.mark.parametrize(("kind", "body"), [(TENSORS, tensors()), (JSON, drawing()), (TENSORS, write(ASKED))])
def test_both_forms_say_the_same(kind, body):
    asked = read(kind, body, Limits())
    assert (asked.id, asked.prompts) == ("one", ("a", "b", "c"))
    assert torch.equal(asked.pixels, LEVELS)
    assert torch.equal(asked.media.pixels, LEVELS / 255)


def test_everything_that_can_be_asked_survives():
    full = replace(ASKED, fps=8.0, pixels=LEVELS / 255, source=LEVELS[:, :, :, :5], group=torch.tensor([2**62, -1, 5]))
    back = read(TENSORS, write(full), Limits())
    for name in ("pixels", "source", "group"):
        assert torch.equal(getattr(back, name), getattr(full, name))
    assert (back.fps, back.prompts, back.id) == (8.0, full.prompts, full.id)
    drawn = read(JSON, drawing(fps=8.0, group=[1, 1, 2], source=[[picture()]] * 3), Limits())
    assert (drawn.fps, drawn.group.tolist(), drawn.source.shape) == (8.0, [1, 1, 2], (3, 1, 3, 8, 8))


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("RGB", "JPEG")]
)
def test_kinds_of_pictures_that_are_understood(mode, kind):
    grey = torch.full((3, 8, 8), 102, dtype=torch.uint8)  # in the usual palette
    asked = read(JSON, drawing(prompts=["a"], media=[[picture(grey, mode, kind)]]), Limits())
    assert (asked.pixels.float() - 102).abs().max() <= 3


def test_pictures_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    wide = torch.zeros(3, 4, 8, dtype=torch.uint8)
    asked = read(JSON, drawing(prompts=["a"], media=[[picture(wide, kind="JPEG", exif=exif)]]), Limits())
    assert asked.pixels.shape[-2:] == (8, 4)


def png(width, height, *, depth, colour, rows):
    """Return a PNG file in base64, made by hand: Pillow would not write it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def bomb():
    """Return a picture of 400 million pixels in 50 kilobytes."""
    return png(20_000, 20_000, depth=1, colour=0, rows=(b"\0" + bytes(20_000 * 3 // 24)) * 100)


def sixteen_colours():
    """Return a picture with 16 bits in each of three channels, which Pillow would read as 8."""
    return png(8, 8, depth=16, colour=2, rows=(b"\0" + bytes(8 * 6)) * 8)


def animated():
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 128, 255)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return base64.b64encode(file.getvalue()).decode()


def sixteen():
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def one(file):
    return drawing(prompts=["a"], media=[[file]])


BAD = {
    "no type": ("text/plain", drawing(), 415, "expected application/x-safetensors or application/json"),
    "empty tensors": (TENSORS, b"", 400, "not a safetensors file"),
    "empty json": (JSON, b"", 400, "JSON: "),
    "a header of 2^60 bytes": (TENSORS, struct.pack("<Q", 2**60) + b"{}", 400, "not a safetensors file"),
    "a pickle": (
        TENSORS,
        b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        400,
        "not a safet",
    ),
    "deep json": (JSON, b"[" * 100_000, 400, "JSON: "),
    "json that is no object": (JSON, b"[]", 400, "JSON: "),
    "NaN": (JSON, drawing().replace(b'"version": 1', b'"version": NaN'), 400, "version"),
    "another version": (
        TENSORS,
        tensors({"version": 2, "id": "x", "prompts": ["a"] * 3}),
        400,
        "version: Input should be 1",
    ),
    "a version in words": (
        TENSORS,
        tensors({"version": "1", "id": "x", "prompts": ["a"] * 3}),
        400,
        "version: Input sh",
    ),
    "an unknown field": (JSON, drawing(path="/etc/passwd"), 400, "path: Extra inputs"),
    "an id of any letters": (JSON, drawing(id="\n\x1b"), 400, "id: String should match"),
    "no request": (TENSORS, safetensors.torch.save({"pixels": LEVELS}), 400, "__metadata__: Field required"),
    "a request that is no object": (TENSORS, tensors("[]"), 400, "request is not understood"),
    "other tensors": (TENSORS, tensors(weights=LEVELS), 400, "expected tensors pixels, source, group"),
    "cut off": (TENSORS, tensors()[:-5], 400, "not a safetensors file"),
    "a frame rate of 0": (JSON, drawing(fps=0.0), 400, "fps: "),
    "no rows": (TENSORS, tensors({"version": 1, "id": "x", "prompts": []}, pixels=LEVELS[:0]), 422, "0 samples"),
    "prompts that do not fit": (TENSORS, tensors(pixels=LEVELS[:2]), 422, "2 samples of pixels for 3 prompts"),
    "sources that do not fit": (TENSORS, tensors(source=LEVELS[:2]), 422, "2 samples of source for 3 prompts"),
    "groups that do not fit": (TENSORS, tensors(group=torch.tensor([1, 2])), 422, "2 group ids for 3 prompts"),
    "groups of floats": (TENSORS, tensors(group=torch.zeros(3)), 400, "group is not a vector of int64"),
    "one channel": (TENSORS, tensors(pixels=LEVELS[:, :, :1]), 422, "pixels are [B, F, 3, H, W]"),
    "no frames": (TENSORS, tensors(pixels=LEVELS[:, :0]), 422, "pixels are [B, F, 3, H, W]"),
    "no dimension": (TENSORS, tensors(pixels=torch.tensor(1.0)), 422, "pixels are [B, F, 3, H, W]"),
    "doubles": (TENSORS, tensors(pixels=LEVELS.double() / 255), 422, "got float64"),
    "NaN pixels": (TENSORS, tensors(pixels=torch.full((3, 1, 3, 8, 8), torch.nan)), 422, "finite and in [0, 1]"),
    "pixels above 1": (TENSORS, tensors(pixels=LEVELS.float()), 422, "finite and in [0, 1]"),
    "no base64": (JSON, one("!!!!"), 422, "media[0] is not base64"),
    "no picture": (JSON, one(base64.b64encode(b"hello").decode()), 422, "media[0] is not a whole PNG, JPEG, WEBP file"),
    "half a picture": (JSON, one(picture()[:120]), 422, "media[0] is no"),
    "half a photograph": (JSON, one(picture(kind="JPEG")[:-200]), 422, "media[0] is no"),
    "another kind of picture": (JSON, one(picture(kind="TIFF")), 422, "media[0] is not a whole PNG"),
    "an animated picture": (JSON, one(animated()), 422, "media[0] is animated"),
    "a transparent picture": (JSON, one(picture(mode="RGBA")), 422, "media[0] is RGBA, perhaps with transparency"),
    "a picture of 16 bits": (JSON, one(sixteen()), 422, "send 8-bit RGB"),
    "colours of 16 bits": (JSON, one(sixteen_colours()), 422, "media[0] is of 16 bits per channel; send 8-bit RGB"),
    "a bomb": (JSON, one(bomb()), 413, "media[0] has"),
    "pictures of two sizes": (
        JSON,
        drawing(media=[[picture()], [picture()], [picture(LEVELS[0, 0, :, :4])]]),
        422,
        "media[2]",
    ),
    "clips of two lengths": (JSON, drawing(media=[[picture()], [picture()], [picture()] * 2]), 422, "the same number"),
    "clips without frames": (JSON, drawing(media=[[], [], []]), 422, "at least one frame"),
    "a path": (JSON, one("/etc/passwd"), 422, "media[0] is no"),
    "an address": (JSON, one("http://169.254.169.254/"), 422, "media[0] is not base64"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_malformed_is_refused_with_a_reason(case):
    kind, body, status, says = BAD[case]
    with pytest.raises(Refusal) as refusal:
        read(kind, body, Limits())
    assert refusal.value.status == status
    assert says in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            tensors({"version": 1, "id": "x", "prompts": ["a"] * 5}, pixels=LEVELS[[0] * 5]),
            "5 samples, expected 1 to 4",
        ),
        (tensors({"version": 1, "id": "x", "prompts": ["a" * 21] * 3}), "a prompt of 21 characters, at most 20"),
        (tensors(pixels=LEVELS.expand(-1, 3, -1, -1, -1).contiguous()), "3 frames, at most 2 per sample"),
        (tensors(pixels=torch.zeros(3, 1, 3, 20, 21, dtype=torch.uint8)), "21 x 20 pixels, at most 400 per frame"),
        (tensors(pixels=torch.zeros(3, 1, 3, 20, 20, dtype=torch.uint8)), "1200 pixels, at most 1000 in one request"),
        (drawing(prompts=["a"] * 5, media=[[picture()]] * 5), "5 prompts, at most 4 in one request"),
        (drawing(media=[[picture()] * 3] * 3), "3 frames, at most 2 per sample"),
        (one(picture(torch.zeros(3, 20, 21, dtype=torch.uint8))), "21 x 20 pixels, at most 400"),
        (drawing(media=[[picture(torch.zeros(3, 20, 20, dtype=torch.uint8))]] * 3), "more than 1000 pixels"),
    ],
)
def test_what_is_too_large_is_refused(body, says):
    with pytest.raises(Refusal, match=says) as refusal:
        read(JSON if body.startswith(b"{") else TENSORS, body, SMALL)
    assert refusal.value.status == 413
