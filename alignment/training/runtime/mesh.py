"""From a description of how work is divided to processes that hold networks together."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh

from alignment.config.parallel import Division, Parallel
from alignment.config.run import Run
from alignment.errors import ConfigError
from alignment.policy.networks.layout import Layout, Whole
from alignment.training.runtime.sharded import Sharded
from alignment.world import World


def as_launched(parallel: Parallel, accelerator: Accelerator) -> Parallel:
    """Return the description with what accelerate was told where it says nothing itself.

    Raises:
        ConfigError: If the two contradict each other, or accelerate was told what is not done here.
    """
    kind = accelerator.distributed_type
    if kind is DistributedType.DEEPSPEED:
        raise ConfigError(
            "accelerate was launched with DeepSpeed, which is not used here: FSDP2 spreads the same things; launch "
            "with configs/accelerate/fsdp2.yaml, or plainly and set parallel.shard"
        )
    if kind is not DistributedType.FSDP:
        return parallel
    plugin = accelerator.state.fsdp_plugin
    assert plugin is not None
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"accelerate was launched with fsdp_version {plugin.fsdp_version}; set it to 2 in its config file, or "
            "launch plainly and set parallel.shard"
        )
    settings = accelerator.parallelism_config
    told = Parallel("auto") if settings is None else Parallel(settings.dp_shard_size, settings.dp_replicate_size)
    for name, ours, theirs in (
        ("shard", parallel.shard, told.shard),
        ("replicate", parallel.replicate, told.replicate),
    ):
        if ours is not None and theirs is not None and ours != theirs:
            raise ConfigError(
                f"parallel.{name} is {ours}, but accelerate was launched with {theirs}; say it in one of the two places"
            )
    return replace(
        parallel,
        shard=told.shard if parallel.shard is None else parallel.shard,
        replicate=told.replicate if parallel.replicate is None else parallel.replicate,
    )


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
