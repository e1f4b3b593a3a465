"""Which code computes what has a fused kernel: torch's own operations, or Triton."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from torch import Tensor

Kernels = Literal["auto", "torch", "triton"]

INSTALLED = importlib.util.find_spec("triton") is not None
# Triton changes its mind about this in 3.10, and warns before; sums are fused as torch's compilers fuse them.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
_CHOSEN: ContextVar[Kernels] = ContextVar("kernels", default="auto")


def choose(kernels: Kernels) -> None:
    """Choose for the rest of this process: "auto" takes Triton for tensors on a GPU where it is installed."""
    _CHOSEN.set(kernels)


@contextmanager
def choosing(kernels: Kernels) -> Iterator[None]:
    """Choose for the block."""
    token = _CHOSEN.set(kernels)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def interpreted() -> bool:
    """Return whether Triton runs its kernels as Python, which tests on a CPU do."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def fused(*tensors: Tensor) -> bool:
    """Return whether Triton should compute on these tensors."""
    chosen = _CHOSEN.get()
    return chosen == "triton" or (chosen == "auto" and INSTALLED and all(tensor.is_cuda for tensor in tensors))
