"""What torchrun, and accelerate which starts it, are told of a failure: their own report then ends with our message."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alignment.errors import EndedElsewhere, VisalignError
from alignment.reports.terminal import visible

FILE = "TORCHELASTIC_ERROR_FILE"
"""Names the file in which a launcher looks for the reason why a process ended, one for each process."""


def tell(message: str) -> None:
    """Leave the launcher the reason of a failure, where there is a launcher that asks for it."""
    name = os.environ.get(FILE)
    if not name:
        return
    reason = {"message": visible(message), "extraInfo": {"timestamp": str(int(time.time()))}}
    with suppress(OSError):  # the message is printed all the same
        Path(name).write_text(json.dumps({"message": reason}), encoding="utf-8")


def unused_gpus(config: str, device: str) -> str:
    """Return how to start a run on all GPUs of this machine; nothing if it uses them, or no launcher could help.

    Args:
        config: Its config file.
        device: "auto", "cpu" or "cuda".
    """
    import torch  # takes seconds, and an error needs none of it

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if gpus < 2 or "WORLD_SIZE" in os.environ:
        return ""
    return f"This run uses one of {gpus} GPUs. For all: torchrun --nproc_per_node {gpus} -m alignment.train {config}"


@contextmanager
def one_tells() -> Iterator[None]:
    """Let the first process print what is wrong for all of them, before they have met: a config, a file, a reward.

    The others leave it to the launcher, whose report has it even where it ended the first one before that could speak.

    Raises:
        EndedElsewhere: On the others, in place of the error.
    """
    try:
        yield
    except VisalignError as error:
        if os.environ.get(FILE) and os.environ.get("RANK", "0") != "0":
            tell(f"visalign: {error}")
            raise EndedElsewhere(error.exit_code) from error
        raise
