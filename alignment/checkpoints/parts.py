"""Tensors of which each process holds a part: written by all of them, read by any number of processes.

They are torch's distributed checkpoints in safetensors files, one file per process; nothing in them can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, distribute_tensor

from alignment.errors import CheckpointError, EnvironmentProblem


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, which every process that holds a part of it has to ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in the very memory of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(part: Tensor, other: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return a tensor of which this process holds `part`, spread over processes as another is.

    Args:
        part: What it holds, in whose memory the tensor lies.
        other: The other tensor.
        shape: Of the whole tensor; None is that of the other.
    """
    if not isinstance(other, DTensor):
        return part
    whole_shape = other.shape if shape is None else torch.Size(shape)
    stride = other.stride() if shape is None else (*shape[1:], 1)
    return DTensor.from_local(
        part, other.device_mesh, other.placements, run_check=False, shape=whole_shape, stride=stride
    )


def spread(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether processes hold parts of these tensors."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def fill(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one of which this process may hold a part; only that part is read."""
    if isinstance(target, DTensor):
        source = distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)
    with torch.no_grad():
        target.copy_(source)


def write_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's parts into `folder`; all processes do so together. Whoever seals the folder syncs it.

    Raises:
        EnvironmentProblem: If one of them cannot.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writer.sync_files = False
    try:
        checkpoint.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        raise EnvironmentProblem(f"{folder} could not be written: {_first(error)}") from error


def sketch_parts(folder: Path) -> dict[str, Tensor]:
    """Return tensors without content that have the names, shapes and dtypes of those in `folder`.

    Raises:
        CheckpointError: If a file is damaged.
    """
    try:
        known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")  # pyright: ignore[reportAttributeAccessIssue]
        for name, entry in known.items()
    }


def read_parts(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Read what this process holds of each tensor, in place; all processes do so together.

    Raises:
        CheckpointError: If a file is damaged.
    """
    alone = not torch.distributed.is_initialized()
    try:
        checkpoint.load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except CheckpointException as error:
        raise CheckpointError(f"{folder} cannot be read: {_first(error)}") from error


def _first(error: CheckpointException) -> str:
    process, (cause, _) = next(iter(error.failures.items()))
    return f"process {process}: {cause or type(cause).__name__}"
