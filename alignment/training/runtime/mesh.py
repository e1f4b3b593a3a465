"""From a description of how work is divided to processes that hold networks together."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh

from alignment.config.parallel import Division
from alignment.config.run import Run
from alignment.policy.networks.layout import Layout, Whole
from alignment.training.runtime.sharded import Sharded
from alignment.world import World


def laid_out(run: Run, division: Division, world: World) -> Layout:
    """Return the layout of the trained networks over the processes."""
    if division.shard == 1:
        return Whole()
    shape, names = (division.replicate, division.shard), ("replicate", "shard")
    if division.replicate == 1:
        shape, names = shape[1:], names[1:]
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    compute = None if run.policy.autocast is None else torch.bfloat16
    return Sharded(mesh, compute, world.meetings, run.parallel.stay_gathered)
