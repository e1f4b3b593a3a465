"""From a description of how work is divided to processes that hold networks together."""

from __future__ import annotations

from torch.distributed.device_mesh import init_device_mesh

from alignment.config.parallel import Division
from alignment.config.run import Run
from alignment.data.batches import Pairs, Samples
from alignment.errors import ConfigError
from alignment.policy.networks.layout import Layout, Whole
from alignment.policy.networks.loading import loop_networks
from alignment.policy.policy import Policy
from alignment.sources.base import StepShape
from alignment.training.runtime.divided import Divided
from alignment.training.runtime.sharded import Sharded
from alignment.training.runtime.team import team_of
from alignment.world import World


def laid_out(run: Run, division: Division, world: World) -> Layout:
    """Return the layout of the trained networks, and of their tokens, over the processes.

    Those that belong together are made known to each other, for which torch would wait half an hour.
    """
    if not world.in_step:
        return Whole()
    with world.exchange("finding those that work together"):
        layout = _spread(run, division, world)
        if division.context == 1:
            return layout
        return Divided(layout, team_of(division.context, world.device), world.meetings)


def _spread(run: Run, division: Division, world: World) -> Layout:
    if division.shard == 1:
        return Whole()
    assert world.meetings is not None  # there are several processes
    shape, names = (division.replicate, division.shard), ("replicate", "shard")
    if division.replicate == 1:
        shape, names = shape[1:], names[1:]
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
    return Sharded(mesh, run.policy.precision, world.meetings, run.parallel.stay_gathered)


def check_together(run: Run, policy: Policy, size: int) -> None:
    """Refuse a run whose networks the processes would not call alike, where none can call them alone.

    Args:
        run: The run.
        policy: What it trains.
        size: Processes, or teams, that have samples of their own.

    Raises:
        ConfigError: Naming the key that decides it.
    """
    name, several, remembers = type(policy.pipe).__name__, len(policy.experts) > 1, not policy.stubs
    check_steering(policy)
    if not policy.weights.layout.in_step:
        return
    if policy.form.mixes:  # else each prompt has a call of its own
        check_calls(run.source.shape(policy.rounds), size)
    if not (several or remembers):
        return
    key, how = ("shard", "spread over processes") if policy.weights.layout.spread else ("context", "called in step")
    if several and issubclass(run.source.produces, Samples | Pairs):
        raise ConfigError(
            f"parallel.{key}: {name} has {len(policy.experts)} networks that take turns by the time, and objective "
            f"{type(run.objective).__name__} draws other times on each process; choose one that learns from the "
            f"pipeline's own steps (clipped_surrogate), or parallel.{key}=1"
        )
    calls = run.source.shape(policy.rounds).calls
    if run.source.window is not None and calls not in (None, 0, 1):
        why = "networks that take turns" if several else "networks that run in every round up to the last trained one"
        raise ConfigError(
            f"source.prompts_per_call: each pipeline call trains steps of its own, and {name} has {why}, which are "
            f"{how} (parallel.{key}); set prompts_per_call=null, which gives a step one window"
        )


def check_steering(policy: Policy) -> None:
    """Refuse to divide the tokens of a network to which another one adds.

    Raises:
        ConfigError: Naming the other.
    """
    steering = [other for other in loop_networks(policy.pipe) if "controlnet" in other]
    if steering and isinstance(policy.weights.layout, Divided):
        raise ConfigError(
            f"parallel.context: the {steering[0]} of {type(policy.pipe).__name__} adds to tokens of its "
            f"{policy.component} that are divided, and is not divided itself; set parallel.context=1"
        )


def check_calls(shape: StepShape, size: int) -> None:
    """Refuse pipeline calls of which some processes would make more than others.

    Raises:
        ConfigError: Naming the key.
    """
    if not shape.calls:
        return
    each, per_call = shape.groups // size, shape.groups // shape.calls
    made = {len({prompt // per_call for prompt in range(rank * each, (rank + 1) * each)}) for rank in range(size)}
    if len(made) > 1:
        raise ConfigError(
            f"source.prompts_per_call: got {per_call}, with which some processes would make {min(made)} pipeline calls "
            f"in a step and others {max(made)}, and networks are called by all of them together; use a number that "
            f"divides the {each} prompts of a process, or null"
        )
