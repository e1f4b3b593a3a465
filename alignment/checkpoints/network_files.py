"""A whole network on the disk, in the layout that `from_pretrained` of diffusers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from alignment.checkpoints.parts import spread, whole

AT_ONCE = "2GB"
"""Of a network that is spread over processes, whole on one of them at a time: the size of its files."""


def write_network(network: Any, folder: Path, *, writes: bool = True) -> None:
    """Write the weights and the config of a diffusers network.

    Where processes hold parts of the weights, all of them call this together: tensors are gathered file by file.

    Args:
        network: The network.
        folder: A folder that does not exist.
        writes: Whether this process writes; the others bring their parts.
    """
    weights = network.state_dict()
    if not spread(weights):
        network.save_pretrained(folder)
        return
    sizes = {name: torch.empty(part.shape, dtype=part.dtype, device="meta") for name, part in weights.items()}
    stem, _, ending = SAFETENSORS_WEIGHTS_NAME.rpartition(".")
    files = split_torch_state_dict_into_shards(
        sizes, filename_pattern=f"{stem}{{suffix}}.{ending}", max_shard_size=AT_ONCE
    )
    if writes:
        network.save_config(folder)
    for name, tensors in files.filename_to_tensors.items():
        gathered = {tensor: whole(weights[tensor]).cpu().contiguous() for tensor in tensors}
        if writes:
            save_file(gathered, folder / name, metadata={"format": "pt"})
    if writes and files.is_sharded:
        index = {"metadata": files.metadata, "weight_map": files.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
