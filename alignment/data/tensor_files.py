"""Tensors kept on disk from run to run, one file per key: written whole or not at all, made again where damaged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.errors import EnvironmentProblem


def read(folder: Path | None, key: str) -> dict[str, Tensor] | None:
    """Return the tensors kept under `key`; None where there are none, they are damaged, or there is no folder."""
    if folder is None or not (folder / f"{key}.safetensors").is_file():
        return None
    try:
        return load_file(folder / f"{key}.safetensors")
    except (SafetensorError, OSError):
        return None


def write(folder: Path | None, key: str, tensors: Mapping[str, Tensor], what: str) -> None:
    """Keep tensors under `key`, where there is a folder.

    Raises:
        EnvironmentProblem: If it cannot be written to; `what` names the setting whose null keeps them in memory.
    """
    if folder is None:
        return
    partial = folder / f"{key}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: z.contiguous() for name, z in tensors.items()}, partial)
        partial.chmod(_mode(folder))
        partial.replace(folder / f"{key}.safetensors")
    except (OSError, SafetensorError) as error:
        raise EnvironmentProblem(
            f"policy.embedding_cache: {folder.parent} cannot be written to ({error}); choose another folder, "
            f"or null to keep {what} in memory"
        ) from error


def heed_umask(folder: Path) -> None:
    """Give every file below a folder that was just made the permissions that the user's umask leaves.

    Safetensors gives what it writes to its owner alone.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(_mode(folder))


def _mode(folder: Path) -> int:
    """Return the permissions of a file in `folder`: the folder's own, for asking for the umask would change it."""
    return folder.stat().st_mode & 0o666
