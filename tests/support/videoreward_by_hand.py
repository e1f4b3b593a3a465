"""VideoReward's arithmetic written out once more, in numpy and float64, from nothing but the checkpoint's own tensors.

Shares no line with the scorer, nor with transformers: patches, the picture encoder, the language model, adapters beside
their weights rather than folded in, and the normalised scores. The sizes are those of the tiny checkpoint.

Source: Qwen2-VL (arXiv 2409.12191) and VideoAlign (arXiv 2501.13918), with plain positions 0, 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import erf

Array = np.ndarray
State = Mapping[str, Array]

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_NORMS = ((3.6757, 2.2476), (1.1646, 1.3811), (2.8105, 2.5121))
"""Mean and spread of VQ, MQ and TA."""
_ADAPTERS = 16 / 8
_PATCH, _MERGE, _FRAMES = 14, 2, 2
_SEEING, _READING, _KEYS, _WIDTH = 2, 4, 2, 16
"""Heads that look, heads that read, keys of those, and the width of every head."""
_LAYERS = 2
_EPS = 1e-6


def scores(state: State, frames: Array, ids: Sequence[int], *, place: int, marks: Sequence[int]) -> list[float]:
    """Return the normalised VQ, MQ and TA of one clip.

    Args:
        state: The checkpoint, float64, under its own names.
        frames: `[F, H, W, 3]` uint8, F even, sides multiples of 28.
        ids: Tokens of the whole text, with `place` wherever a piece of the clip goes.
        place: That token.
        marks: The tokens at which scores are read.
    """
    tokens = np.asarray(ids)
    x = state["base_model.model.model.embed_tokens.weight"][tokens]
    x[tokens == place] = _seen(state, frames)
    for layer in range(_LAYERS):
        x = _read(state, f"base_model.model.model.layers.{layer}", x)
    x = _rms(x, state["base_model.model.model.norm.weight"])
    raw = [float((x[tokens == mark] @ state["base_model.model.rm_head.weight"].T)[0, 0]) for mark in marks]
    return [(score - mean) / spread for score, (mean, spread) in zip(raw, _NORMS, strict=True)]


def _seen(state: State, frames: Array) -> Array:
    """Return what the language model is shown of a clip, a row for every 28 x 28 pixels of two frames."""
    pixels = (frames / 255 - _MEAN) / _STD
    times, down, across = (n // p for n, p in zip(frames.shape, (_FRAMES, _PATCH, _PATCH), strict=False))
    shape = (times, _FRAMES, down // _MERGE, _MERGE, _PATCH, across // _MERGE, _MERGE, _PATCH, 3)
    # Patches that become one row follow each other.
    patches = pixels.reshape(shape).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(times, down * across, -1)
    rows, columns = (
        np.broadcast_to(np.arange(n).reshape(s), (down, across)) for n, s in ((down, (-1, 1)), (across, (1, -1)))
    )
    order = (down // _MERGE, _MERGE, across // _MERGE, _MERGE)
    places = [grid.reshape(order).transpose(0, 2, 1, 3).reshape(-1) for grid in (rows, columns)]
    rates = 10_000.0 ** -(np.arange(_WIDTH // 4) / (_WIDTH // 4))
    angles = np.concatenate([place[:, None] * rates for place in places], 1)
    kernel = state["base_model.model.visual.patch_embed.proj.weight"].reshape(32, -1)
    return np.concatenate([_looked(state, patch @ kernel.T, angles) for patch in patches])


def _looked(state: State, x: Array, angles: Array) -> Array:
    for layer in range(_LAYERS):
        name = f"base_model.model.visual.blocks.{layer}"
        q, k, v = np.split(_linear(state, f"{name}.attn.qkv", _norm(state, f"{name}.norm1", x)), 3, axis=1)
        heads = [
            _attend(_turn(a, angles), _turn(b, angles), c)
            for a, b, c in zip(*(np.split(part, _SEEING, axis=1) for part in (q, k, v)), strict=True)
        ]
        x = x + _linear(state, f"{name}.attn.proj", np.concatenate(heads, 1))
        inner = _linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.norm2", x))
        x = x + _linear(state, f"{name}.mlp.fc2", inner / (1 + np.exp(-1.702 * inner)))
    merger = "base_model.model.visual.merger"
    four = _norm(state, f"{merger}.ln_q", x).reshape(len(x) // _MERGE**2, -1)
    inner = _linear(state, f"{merger}.mlp.0", four)
    return _linear(state, f"{merger}.mlp.2", inner * 0.5 * (1 + erf(inner / 2**0.5)))


def _read(state: State, name: str, x: Array) -> Array:
    angles = np.arange(len(x))[:, None] * 1e6 ** -(np.arange(_WIDTH // 2) / (_WIDTH // 2))
    normed = _rms(x, state[f"{name}.input_layernorm.weight"])
    q, k, v = (_adapted(state, f"{name}.self_attn.{part}_proj", normed) for part in "qkv")
    past = np.tril(np.ones((len(x), len(x)), dtype=bool))
    shared = _READING // _KEYS
    heads = []
    for head in range(_READING):
        mine, its = (slice(i * _WIDTH, (i + 1) * _WIDTH) for i in (head, head // shared))
        heads.append(_attend(_turn(q[:, mine], angles), _turn(k[:, its], angles), v[:, its], past))
    x = x + _adapted(state, f"{name}.self_attn.o_proj", np.concatenate(heads, 1))
    normed = _rms(x, state[f"{name}.post_attention_layernorm.weight"])
    gate, up = (_adapted(state, f"{name}.mlp.{part}_proj", normed) for part in ("gate", "up"))
    return x + _adapted(state, f"{name}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)


def _adapted(state: State, name: str, x: Array) -> Array:
    """Return the weight's answer plus its adapter's, which stay two."""
    low = x @ state[f"{name}.lora_A.default.weight"].T
    return _linear(state, f"{name}.base_layer", x) + _ADAPTERS * low @ state[f"{name}.lora_B.default.weight"].T


def _linear(state: State, name: str, x: Array) -> Array:
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0.0)


def _attend(q: Array, k: Array, v: Array, seen: Array | bool = True) -> Array:
    power = np.where(seen, q @ k.T / q.shape[1] ** 0.5, -np.inf)
    power = np.exp(power - power.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True) @ v


def _turn(x: Array, angles: Array) -> Array:
    """Turn the pairs (x_i, x_(i + half)) by their angles."""
    a, b = np.split(x, 2, axis=1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], 1)


def _norm(state: State, name: str, x: Array) -> Array:
    away = x - x.mean(1, keepdims=True)
    return away / np.sqrt((away**2).mean(1, keepdims=True) + _EPS) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _rms(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(1, keepdims=True) + _EPS) * weight
