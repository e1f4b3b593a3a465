"""Questions to a reward server, in both forms."""

from __future__ import annotations

import base64
import io
import json

import httpx
import safetensors.torch
import torch
from PIL import Image

from reward_models.base import Media
from reward_models.measures.colour import Colour
from reward_models.serving.wire import TENSORS, Limits, ParsedQuestion, write

LEVELS = torch.randint(0, 256, (3, 1, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
ASKED = ParsedQuestion("one", ("a", "b", "c"), None, LEVELS)
RIGHT = Colour().load(device=torch.device("cpu"))(media=Media(LEVELS / 255), prompts=["a", "b", "c"]).value.tolist()
"""What `Colour` says of them."""
SMALL = Limits(body=100_000, rows=4, frames=2, pixels=400, total=1000, prompt=20)


def picture(pixels=LEVELS[0, 0], mode="RGB", kind="PNG", **settings):
    """Return a picture file in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).convert(mode).save(file, kind, **settings)
    return base64.b64encode(file.getvalue()).decode()


def drawing(**changes):
    """Return a question of three pictures as JSON."""
    media = [[picture(frame) for frame in clip] for clip in LEVELS]
    return json.dumps({"version": 1, "id": "one", "prompts": ["a", "b", "c"], "media": media, **changes}).encode()


def tensors(request=None, **changes):
    """Return a question of three pictures as a safetensors file."""
    told = {"version": 1, "id": "one", "prompts": ["a", "b", "c"]} if request is None else request
    text = told if isinstance(told, str) else json.dumps(told)
    given = {name: tensor.contiguous().clone() for name, tensor in {"pixels": LEVELS, **changes}.items()}
    return safetensors.torch.save(given, {"request": text})


def post(url, body=None, kind=TENSORS, **headers):
    content = write(ASKED) if body is None else body
    return httpx.post(
        f"{url}/v1/score", content=content, headers={"Content-Type": kind, **headers}, trust_env=False, timeout=None
    )
