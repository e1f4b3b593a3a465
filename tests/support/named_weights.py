"""Weights that are a function of their name and shape alone, and pictures that are one of their number.

Two programs that have nothing but this file in common can then hold the same model and look at the same pictures: the
authors' packages in an environment of their own, and ours. It stands on numpy and torch alone.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

PROMPTS = (
    "a photo of a cat on a wooden table",
    "Two red cubes and a blue sphere, 8k, highly detailed!",
    "naïve café — “quotes” &amp; emoji 🙂 in   the   prompt",
    "word " * 120,
)
SIZES = ((512, 512), (640, 384), (301, 777), (224, 224), (1024, 1024))
"""(width, height) of the pictures. The third is so tall that PIL 13 resizes its columns first."""

_NOT_WEIGHTS = ("logit_scale", "position_ids", "attn_mask")


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the weight of this official name and shape."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape), dtype=np.float32)
    values = torch.from_numpy(noise)
    if len(shape) <= 1:
        return 0.05 * values + (1.0 if name.endswith("weight") else 0.0)
    if "embed" in name or "class_" in name or "cls_token" in name:
        return 0.3 * values
    return values * float(np.prod(shape[1:])) ** -0.5


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with every weight replaced by the one of its name."""
    return {
        name: value if name.endswith(_NOT_WEIGHTS) else weight(name, tuple(value.shape)).to(value.dtype)
        for name, value in state.items()
    }


def picture(number: int) -> np.ndarray:
    """Return one of the pictures, `[H, W, 3]` uint8: waves, noise, and a block with hard edges."""
    width, height = SIZES[number]
    draw = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = []
    for _ in range(3):
        rate, phase = draw.uniform(0.5, 12, 4), draw.uniform(0, 6.28, 4)
        across = [x / width * np.cos(k) + y / height * np.sin(k) for k in range(4)]
        channels.append(sum(np.sin(rate[k] * 2 * np.pi * across[k] + phase[k]) for k in range(4)) / 4)
    pixels = (np.stack(channels, -1) * 0.5 + 0.5) * 255 + draw.normal(0, 20, (height, width, 3))
    pixels[height // 4 : height // 2, width // 4 : width // 2] = draw.uniform(0, 255, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)
