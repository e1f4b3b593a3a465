"""A reward that takes process 1 away when it is to be made known to its team, which the others await inside torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from torch import Tensor
from torch.distributed import device_mesh


def leave(*_: object, **named: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("RANK") == "1":
    device_mesh.new_group = leave  # pyright: ignore[reportPrivateImportUsage]


def brightness(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return pixels.mean((1, 2, 3, 4))
