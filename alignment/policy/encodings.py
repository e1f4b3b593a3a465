"""Pictures that a pipeline starts from, each encoded once: a memory of the VAE's own `encode`.

What is kept is the distribution that `encode` returns, before anything is drawn from it: a pipeline that samples its
image latents draws them from its generators as it would have, so a row draws the same ones in rollout and replay. Each
row is encoded by itself, so that a picture is encoded once however many rows a call has, and to the same numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

_IN_MEMORY = 128
"""Pictures kept. A group asks for one again and again: in its rollout, for every row, and in every microbatch."""


class Encodings:
    """Stands in for `pipe.vae.encode`, where a pipeline has one; it puts itself in place.

    Attributes:
        misses: Pictures that were encoded.
        answered: Pictures that were known.
    """

    def __init__(self, pipe: Any) -> None:
        self._known: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self.misses = self.answered = 0
        vae: Any = pipe.components.get("vae")
        if isinstance(vae, nn.Module) and hasattr(vae, "encode"):
            encode: Any = vae.encode
            self._encode: Callable[..., Any] = encode
            vars(vae)["encode"] = self

    def __call__(self, x: Tensor, return_dict: bool = True) -> Any:
        """Return what `encode` does, from memory for rows of `x` that were encoded before."""
        rows = [self._row(row, return_dict) for row in x.split(1)]
        return rows[0] if len(rows) == 1 else _joined(rows)

    def forget(self) -> None:
        """Forget everything."""
        self._known.clear()

    def _row(self, x: Tensor, return_dict: bool) -> Any:
        key = (_digest(x), tuple(x.shape), x.dtype, x.device, return_dict, torch.is_autocast_enabled(x.device.type))
        if key in self._known:
            self.answered += 1
        else:
            self.misses += 1
            self._known[key] = self._encode(x, return_dict=return_dict)
        self._known.move_to_end(key)
        if len(self._known) > _IN_MEMORY:
            self._known.popitem(last=False)
        return self._known[key]


def _joined(rows: Sequence[Any]) -> Any:
    """Return one answer for what was answered row by row: tensors, distributions, or outputs that hold them."""
    first = rows[0]
    if isinstance(first, Tensor):
        return torch.cat(list(rows))
    if isinstance(first, dict):
        return type(first)(**{name: _joined([row[name] for row in rows]) for name in first})
    if isinstance(first, tuple):
        return tuple(_joined(parts) for parts in zip(*rows, strict=True))
    return type(first)(_joined([row.parameters for row in rows]))  # diffusers' distributions


def _digest(x: Tensor) -> str:
    flat = x.detach().cpu().contiguous().flatten().view(torch.uint8)
    return xxhash.xxh3_128_hexdigest(flat.numpy().tobytes())
