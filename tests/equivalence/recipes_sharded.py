"""Take a step of every recipe on its tiny twin with networks spread over two processes; test_recipes.py compares.

Usage: torchrun --nproc_per_node 2 recipes_sharded.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from alignment.errors import VisalignError
from tests.support.recipe_twins import RECIPES, in_float32, take_step, tiny_run, write_data
from tests.support.tiny_rewards import Shelf


def main() -> None:
    """Write RECIPE.safetensors for those that come through, RECIPE.txt with the reason for those that are refused.

    A recipe comes through if it takes a step as it is. The weights are those of a step in float32, for comparison:
    two ways to round to bfloat16 (autocast casts at each operation, FSDP2 a block's weights and inputs) show nothing.
    """
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    mine = folder / f"process {rank}"  # each process makes the same files, for itself
    (mine / "rewards").mkdir(parents=True)
    write_data(mine)
    os.chdir(mine)
    shelf = Shelf(mine / "rewards")
    # Before the processes meet: afterwards transformers lets the first one alone write.
    sharded = {name: tiny_run(path, mine, shelf, "parallel.shard=2") for name, path in RECIPES.items()}
    for name, run in sharded.items():
        try:
            take_step(run)
            weights, _ = take_step(in_float32(run))
        except VisalignError as error:
            (mine / f"{name}.txt").write_text(str(error))
            continue
        if rank == "0":
            save_file(weights, folder / f"{name}.safetensors")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
