"""Small things that only several processes can show, each written down; test_pieces.py runs and reads it.

Usage: torchrun --nproc_per_node 2 pieces.py OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from alignment.checkpoints.parts import own, read_parts, whole, write_parts
from alignment.config.run import Optimizer
from alignment.training.runtime import optimizers

EIGHT = Optimizer(1e-2, "adamw8bit", weight_decay=0.1)
SHAPES = {"wide": (21, 256), "row": (1, 4096), "small": (3, 5), "bias": (300,)}
"""Weights whose rows do not divide, one that leaves a process without any, and some that stay float32."""
UPDATES = 3


def weights(mesh: DeviceMesh | None) -> dict[str, nn.Parameter]:
    """Return weights, whole or spread."""
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: nn.Parameter(laid(weight, mesh)) for name, weight in made.items()}


def laid(tensor: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """Return a tensor as it lies over a mesh, or whole."""
    return tensor if mesh is None else distribute_tensor(tensor, mesh, [Shard(0)])


def learned(mesh: DeviceMesh | None) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Return weights after some updates, and what the optimiser keeps."""
    made = weights(mesh)
    optimizer = optimizers.make(EIGHT, made)
    for step in range(UPDATES):
        generator = torch.Generator().manual_seed(step)
        for weight in made.values():
            weight.grad = laid(torch.randn(weight.shape, generator=generator), mesh)
        optimizers.step(optimizer, EIGHT.learning_rate)
    return made, optimizers.moments(EIGHT, list(made.values()), optimizer.state)


def eight_bits(mesh: DeviceMesh, folder: Path) -> dict[str, Tensor]:
    """Learn in 8 bits, put it away, take it up again, and return the weights; nothing is lost."""
    made, kept = learned(mesh)
    assert all(isinstance(z, DTensor) for name, z in kept.items() if not name.endswith("step"))
    write_parts(folder / "eight", kept)
    again = weights(mesh)
    empty = optimizers.moments(EIGHT, list(again.values()), optimizers.make(EIGHT, again).state)
    read_parts(folder / "eight", empty)
    assert all(torch.equal(own(empty[name]), own(z)) for name, z in kept.items())
    return {name: whole(weight.detach()).contiguous() for name, weight in made.items()}


def main() -> None:
    """Do everything, and write what came out from the main process."""
    torch.set_num_threads(1)
    folder, state = Path(sys.argv[1]), PartialState(cpu=True)
    mesh = init_device_mesh("cpu", (state.num_processes,))
    for name, made in {"eight.safetensors": eight_bits(mesh, folder)}.items():
        if state.is_main_process:
            save_file(made, folder / name)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
