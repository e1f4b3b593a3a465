"""What GPUs can do, from their makers' data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alignment.errors import ConfigError

_MIB = 2**20
_TERA = 1e12
_GIGA = 1e9


@dataclass(frozen=True)
class GPU:
    """A kind of GPU.

    Attributes:
        name: As people call it.
        memory: Bytes that a driver reports.
        half: Peak FLOP/s of dense bfloat16 products accumulated in float32.
        full: Peak FLOP/s of float32 without tensor cores, which is torch's default precision.
        link: Bytes per second that one receives of others in its machine: NVLink where it has one, else PCIe.
    """

    name: str
    memory: float
    half: float
    full: float
    link: float


GPUS = (
    GPU("b200", 183_359 * _MIB, 2250 * _TERA, 75 * _TERA, 900 * _GIGA),
    GPU("h200", 143_771 * _MIB, 989 * _TERA, 67 * _TERA, 450 * _GIGA),
    GPU("h100", 81_559 * _MIB, 989 * _TERA, 67 * _TERA, 450 * _GIGA),
    GPU("a100-80", 81_920 * _MIB, 312 * _TERA, 19.5 * _TERA, 300 * _GIGA),
    GPU("a100-40", 40_960 * _MIB, 312 * _TERA, 19.5 * _TERA, 300 * _GIGA),
    GPU("l40s", 46_068 * _MIB, 362 * _TERA, 91.6 * _TERA, 32 * _GIGA),
    GPU("l4", 23_034 * _MIB, 121 * _TERA, 30.3 * _TERA, 32 * _GIGA),
    GPU("5090", 32_607 * _MIB, 209 * _TERA, 104.8 * _TERA, 64 * _GIGA),
    GPU("4090", 24_564 * _MIB, 165 * _TERA, 82.6 * _TERA, 32 * _GIGA),
    GPU("3090", 24_576 * _MIB, 71 * _TERA, 35.6 * _TERA, 32 * _GIGA),
)


def product(name: str) -> GPU | None:
    """Return the GPU that a driver calls by this name, such as "NVIDIA A100-SXM4-80GB"; None if none here."""
    words = re.findall(r"[a-z]*\d+[a-z]*", name.lower())
    for one in GPUS:
        kind, _, size = one.name.partition("-")
        if kind in words and any(word.startswith(size) for word in words):
            return one
    return None


def gpu(name: str) -> GPU:
    """Return the GPU of this name.

    Raises:
        ConfigError: If it is not known here.
    """
    for one in GPUS:
        if one.name == name.lower():
            return one
    raise ConfigError(f"--gpu: no GPU is called {name!r} here; known: {', '.join(one.name for one in GPUS)}")
