"""What a reward server and its clients send each other: version 1 of the protocol. Nothing in it can run code.

A question is the body of `POST /v1/score`, in one of two forms:

    application/x-safetensors   tensors "pixels" `[B, F, 3, H, W]` (uint8, or float16 or float32 in [0, 1]), "source" of
                                the same kind where samples were made from something, and "group" `[B]` (int64) where
                                the model compares; the metadata's "request" is a JSON object (`WireQuestion`)
    application/json            a `Drawing`: the same object with PNG, JPEG or WebP files in base64; for hand use

The answer is a JSON object (`Answer`) with one score per sample, null where there is none.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from reward_models.base import Media
from reward_models.foreign import ForeignCode

VERSION = 1
PROTOCOL = "visalign-reward"
TENSORS = "application/x-safetensors"
JSON = "application/json"
FORMATS = ("PNG", "JPEG", "WEBP")
HEADER = 8 * 2**20
"""Most bytes of a safetensors header: 64 long prompts, escaped."""
KEPT, DECODING = 3, 24
"""Bytes a pixel: of all pictures of a question, and more for the one that is being decoded (17 were measured)."""
_PNG_DEPTH = 24
"""Where a PNG file says how many bits a channel has: after its signature and the sizes in its first chunk."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Identifier = Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]


class Refusal(Exception):
    """A question that is not answered.

    Attributes:
        status: HTTP status.
        code: A word that stays the same from version to version.
        wait: Seconds after which to ask again; None where that would not help.
    """

    def __init__(self, status: int, code: str, message: str, wait: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.wait = status, code, wait


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class WireQuestion(_Strict):
    """What is asked about the tensors beside it."""

    version: Literal[1]
    id: Identifier
    prompts: list[str]
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Drawing(WireQuestion):
    """A question that brings its pictures: each sample is a list of frames, each frame a file in base64."""

    media: list[list[str]]
    source: list[list[str]] | None = None
    group: list[Annotated[int, Field(ge=-(2**63), lt=2**63)]] | None = None


class Answer(_Strict):
    """One score per sample, in the order of the question."""

    version: Literal[1]
    id: Identifier
    fingerprint: str
    scores: list[Finite | None]
    parts: dict[str, list[Finite | None]]
    errors: list[str | None]


@dataclass(frozen=True)
class Limits:
    """What a server takes in one question.

    Attributes:
        body: Bytes.
        rows: Samples.
        frames: Frames of a sample.
        pixels: Pixels of a frame.
        total: Pixels of all frames together.
        prompt: Characters of a prompt.
    """

    body: int = 64 * 2**20
    rows: int = 64
    frames: int = 512
    pixels: int = 16 * 10**6
    total: int = 64 * 10**6
    prompt: int = 32_768


@dataclass(frozen=True)
class ParsedQuestion:
    """A question that was understood; pixels as they came, uint8 or floating point."""

    id: str
    prompts: tuple[str, ...]
    fps: float | None
    pixels: Tensor
    source: Tensor | None = None
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Tensor) -> ParsedQuestion:
        source, group = (None if one is None else one[rows] for one in (self.source, self.group))
        prompts = tuple(self.prompts[row] for row in rows.tolist())
        return replace(self, prompts=prompts, pixels=self.pixels[rows], source=source, group=group)

    @property
    def shape(self) -> tuple[object, ...]:
        """What two questions must share to be scored together."""
        source = None if self.source is None else self.source.shape[1:]
        return (self.pixels.shape[1:], source, self.fps, self.group is None)

    @property
    def media(self) -> Media:
        """The samples as scorers take them."""
        source = None if self.source is None else Media(unit(self.source))
        return Media(unit(self.pixels), self.fps, source)


def unit(pixels: Tensor) -> Tensor:
    """Return pixels as float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def levels(pixels: Tensor) -> Tensor:
    """Return pixels in [0, 1] as the nearest of 256 levels, uint8."""
    return (pixels.detach().float() * 255).round().clamp(0, 255).byte()


# ---- reading a question ----------------------------------------------------------------------------------------------


Claim = Callable[[int], None]
"""Takes room for so many bytes, or refuses the question."""


def read(kind: str, body: bytes, limits: Limits, claim: Claim = lambda size: None) -> ParsedQuestion:
    """Understand a question.

    Args:
        kind: Content type.
        body: What came.
        limits: What it may hold.
        claim: Called before anything is unpacked, with the bytes that it will take.

    Raises:
        Refusal: If it is malformed, larger than `limits`, or `claim` refuses.
    """
    if kind == TENSORS:
        claim(len(body))
        asked = _read_tensors(body, limits)
    elif kind == JSON:
        claim(len(body))
        asked = _read_drawing(body, limits, claim)
    else:
        raise Refusal(415, "content_type", f"expected {TENSORS} or {JSON}, got {kind!r:.80}")
    _check(asked, limits)
    return asked


def _read_tensors(body: bytes, limits: Limits) -> ParsedQuestion:
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > min(len(body) - 8, HEADER):
        raise Refusal(400, "malformed", "this is not a safetensors file")
    try:
        header = _Header.model_validate_json(body[8 : 8 + size])
        question = WireQuestion.model_validate_json(header.metadata.request)
    except ValidationError as error:
        raise Refusal(400, "malformed", f"the metadata's request is not understood: {_first(error)}") from error
    with ForeignCode(lambda error: Refusal(400, "malformed", f"this is not a safetensors file: {str(error)[:200]}")):
        tensors = safetensors.torch.load(body)
    if "pixels" not in tensors or tensors.keys() - {"pixels", "source", "group"}:
        raise Refusal(
            400, "malformed", f"expected tensors pixels, source, group; got {', '.join(sorted(tensors))[:200]}"
        )
    group = tensors.get("group")
    if group is not None and (group.dtype != torch.int64 or group.ndim != 1):
        raise Refusal(400, "malformed", "group is not a vector of int64")
    asked = (question.id, tuple(question.prompts), question.fps, tensors["pixels"], tensors.get("source"), group)
    return ParsedQuestion(*asked)


class _Metadata(BaseModel):
    request: str


class _Header(BaseModel):
    metadata: _Metadata = Field(alias="__metadata__")


def _read_drawing(body: bytes, limits: Limits, claim: Claim) -> ParsedQuestion:
    try:
        drawing = Drawing.model_validate_json(body)
    except ValidationError as error:
        raise Refusal(400, "malformed", f"the request is not understood: {_first(error)}") from error
    for what, clips in (("prompts", drawing.prompts), ("media", drawing.media), ("source", drawing.source or ())):
        if len(clips) > limits.rows:
            raise Refusal(413, "too_many_samples", f"{len(clips)} {what}, at most {limits.rows} in one request")
    # All headers before any picture: a small file says there how much memory it takes.
    budget = [limits.total]
    sizes = _measured(drawing.media, "media", limits, budget)
    sizes += [] if drawing.source is None else _measured(drawing.source, "source", limits, budget)
    claim(KEPT * sum(sizes) + DECODING * max(sizes))
    pixels = _stack(drawing.media, "media", limits)
    source = None if drawing.source is None else _stack(drawing.source, "source", limits)
    group = None if drawing.group is None else torch.tensor(drawing.group, dtype=torch.int64)
    return ParsedQuestion(drawing.id, tuple(drawing.prompts), drawing.fps, pixels, source, group)


def _measured(clips: list[list[str]], what: str, limits: Limits, budget: list[int]) -> list[int]:
    """Return how many pixels each picture has, from its header."""
    if not clips or len({len(clip) for clip in clips}) != 1 or not clips[0]:
        raise Refusal(422, "media", f"{what} needs samples of at least one frame, all of the same number of frames")
    if len(clips[0]) > limits.frames:
        raise Refusal(413, "too_many_frames", f"{len(clips[0])} frames, at most {limits.frames} per sample")
    sizes: list[int] = []
    for row, clip in enumerate(clips):
        for file in clip:
            with _opened(file, f"{what}[{row}]", limits) as (picture, _):
                sizes.append(picture.width * picture.height)
            budget[0] -= sizes[-1]
            if budget[0] < 0:
                raise Refusal(413, "too_many_pixels", f"more than {limits.total} pixels in one request")
    return sizes


def _stack(clips: list[list[str]], what: str, limits: Limits) -> Tensor:
    frames: Tensor | None = None
    files = [(row, file) for row, clip in enumerate(clips) for file in clip]
    for place, (row, file) in enumerate(files):
        frame = _decode(file, f"{what}[{row}]", limits)
        if frames is None:
            frames = torch.empty(len(files), *frame.shape, dtype=torch.uint8)
        if frame.shape != frames.shape[1:]:
            raise Refusal(422, "media", f"{what}[{row}] has another size than the first; ask about each size by itself")
        frames[place] = frame
    assert frames is not None
    return frames.unflatten(0, (len(clips), len(clips[0])))


@contextmanager
def _opened(file: str, where: str, limits: Limits) -> Iterator[tuple[Image.Image, bytes]]:
    """Yield a picture whose header has been read, and its file; what Pillow raises meanwhile becomes a refusal."""
    try:
        content = base64.b64decode(file, validate=True)
    except ValueError as error:  # of which binascii has one kind; another says that a character is not ASCII
        raise Refusal(422, "media", f"{where} is not base64") from error

    def broken(error: BaseException) -> Refusal:
        if isinstance(error, Image.DecompressionBombError):
            return Refusal(413, "too_many_pixels", f"{where} has far more than {limits.pixels} pixels")
        return Refusal(422, "media", f"{where} is not a whole {', '.join(FORMATS)} file")

    with ForeignCode(broken), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        if picture.width * picture.height > limits.pixels:
            raise Refusal(
                413,
                "too_many_pixels",
                f"{where} has {picture.width} x {picture.height} pixels, at most {limits.pixels}",
            )
        if picture.format != "JPEG" and hasattr(picture, "is_animated") and picture.is_animated:  # pyright: ignore[reportAttributeAccessIssue]
            raise Refusal(422, "media", f"{where} is animated; send its frames one by one")
        yield picture, content


def _decode(file: str, where: str, limits: Limits) -> Tensor:
    """Return a picture as `[3, H, W]` uint8, upright."""
    with _opened(file, where, limits) as (picture, content):
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        # Pillow opens 16-bit colours as RGB and drops half of each.
        sixteen = picture.format == "PNG" and content[_PNG_DEPTH] == 16
        if upright.mode not in ("RGB", "L", "P", "CMYK") or upright.has_transparency_data or sixteen:
            mode = "of 16 bits per channel" if sixteen else f"{upright.mode}, perhaps with transparency"
            raise Refusal(422, "media", f"{where} is {mode}; send 8-bit RGB without alpha")
        pixels = np.array(upright.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _first(error: ValidationError) -> str:
    """Return the first thing wrong, without what was sent."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'JSON'}: {problem['msg']}"[:200]


def _check(asked: ParsedQuestion, limits: Limits) -> None:
    rows = len(asked.prompts)
    if rows < 1 or rows > limits.rows:
        raise Refusal(413 if rows else 422, "too_many_samples", f"{rows} samples, expected 1 to {limits.rows}")
    longest = max(map(len, asked.prompts))
    if longest > limits.prompt:
        raise Refusal(413, "prompt_too_long", f"a prompt of {longest} characters, at most {limits.prompt}")
    total = 0
    for what, pixels in (("pixels", asked.pixels), ("source", asked.source)):
        if pixels is not None:
            _check_pixels(what, pixels, rows, limits)
            total += pixels.numel() // 3
    if total > limits.total:
        raise Refusal(413, "too_many_pixels", f"{total} pixels, at most {limits.total} in one request")
    if asked.group is not None and len(asked.group) != rows:
        raise Refusal(422, "group", f"{len(asked.group)} group ids for {rows} prompts")


def _check_pixels(what: str, pixels: Tensor, rows: int, limits: Limits) -> None:
    shape = tuple(pixels.shape)
    if pixels.ndim != 5 or shape[2] != 3 or min(shape) < 1:
        raise Refusal(422, "media", f"{what} are [B, F, 3, H, W], got {list(shape)}")
    if shape[0] != rows:
        raise Refusal(422, "media", f"{shape[0]} samples of {what} for {rows} prompts")
    if shape[1] > limits.frames:
        raise Refusal(413, "too_many_frames", f"{shape[1]} frames, at most {limits.frames} per sample")
    if shape[3] * shape[4] > limits.pixels:
        raise Refusal(413, "too_many_pixels", f"{shape[4]} x {shape[3]} pixels, at most {limits.pixels} per frame")
    if pixels.dtype == torch.uint8:
        return
    if pixels.dtype not in (torch.float16, torch.float32):
        raise Refusal(
            422, "media", f"{what} are uint8, float16 or float32, got {str(pixels.dtype).removeprefix('torch.')}"
        )
    low, high = torch.aminmax(pixels.float())
    if not (low >= 0 and high <= 1):  # so that NaN is refused too
        raise Refusal(422, "media", f"{what} of floating-point numbers are finite and in [0, 1]")


# ---- writing one -----------------------------------------------------------------------------------------------------


def write(asked: ParsedQuestion) -> bytes:
    """Return the body that says `asked`."""
    question = WireQuestion(version=VERSION, id=asked.id, prompts=list(asked.prompts), fps=asked.fps)
    tensors = {"pixels": asked.pixels, "source": asked.source, "group": asked.group}
    # Cloned, because safetensors refuses tensors that share memory, as a sample and its source may.
    given = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items() if tensor is not None}
    return safetensors.torch.save(given, {"request": question.model_dump_json()})
