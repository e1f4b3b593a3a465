"""Small things that only several processes can show, each written down; test_pieces.py runs and reads it.

Usage: torchrun --nproc_per_node 2 pieces.py OUTPUT_FOLDER PIPELINE
"""

from __future__ import annotations

import gc
import json
import sys
import threading
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from alignment.checkpoints.parts import own, read_parts, whole, write_parts
from alignment.config.run import Optimizer, PolicySpec
from alignment.meetings import Meetings
from alignment.policy.networks.loading import experts, load_pipeline
from alignment.policy.networks.weights import Weights
from alignment.training.runtime import optimizers
from alignment.training.runtime.sharded import Sharded

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


def anonymous() -> int:
    """Return the bytes of this process that lie in no file: what is mapped from one takes no room of its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Most:
    """The most that `anonymous` was while it was entered."""

    def __enter__(self) -> Most:
        self.bytes, self._over = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, anonymous())


def loaded(mesh: DeviceMesh, pipeline: str) -> dict[str, int]:
    """Return the bytes of a network, and what a process takes to load its part of it."""
    DiffusionPipeline.from_pretrained(pipeline)  # what is imported takes room, too
    gc.collect()
    spec, before = PolicySpec(pipeline), anonymous()
    meetings = Meetings(torch.distributed.HashStore(), 0, 1, 60.0, lambda: None)
    layout = Sharded(mesh, None, meetings)
    with Most() as most:
        pipe = load_pipeline(spec, torch.device("cpu"), layout)
        size = sum(p.nbytes for p in pipe.transformer.parameters())
        Weights(experts(pipe), spec, 0, layout=layout)
    return {"network": size, "most": most.bytes - before}


def main() -> None:
    """Do everything, and write what came out from the main process."""
    torch.set_num_threads(1)
    folder, state = Path(sys.argv[1]), PartialState(cpu=True)
    mesh = init_device_mesh("cpu", (state.num_processes,))
    for name, made in {"eight.safetensors": eight_bits(mesh, folder)}.items():
        if state.is_main_process:
            save_file(made, folder / name)
    taken = gather_object([loaded(mesh, sys.argv[2])])
    if state.is_main_process:
        (folder / "loaded.json").write_text(json.dumps(taken))
    state.destroy_process_group()


if __name__ == "__main__":
    main()
