"""What a run's steps will be like: by its pipeline's scheduler, and by the weights that sample; no weights are read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alignment.config.run import Run
from alignment.data.batches import Pairs, Samples
from samplers import Grid, read_grid, read_path
from samplers.dynamics.base import Dynamics
from samplers.errors import SamplingError, SchedulerError, without_noise
from samplers.paths.path import RectifiedFlow


def read_scheduler(pipeline: str) -> Any | None:
    """Return the scheduler of a pipeline in a local folder; None where the folder alone does not give one.

    A damaged folder counts as no scheduler here; loading the pipeline reports what is wrong with it.
    """
    import diffusers

    from alignment.policy.networks.loading import goes_from_time_to_time

    folder = Path(pipeline)
    try:
        index, settings = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("model_index.json", "scheduler/scheduler_config.json")
        )
    except (OSError, ValueError):
        return None
    match index, settings:
        case {"scheduler": [_, str(name)]}, dict() if hasattr(diffusers, name):
            kind = getattr(diffusers, name)
            try:
                return kind.from_config(settings) if goes_from_time_to_time(kind) else None
            except (TypeError, ValueError, NotImplementedError):
                return None
        case _:
            return None


def check_dynamics(dynamics: Dynamics, scheduler: Any) -> None:
    """Refuse dynamics that are defined on rectified flows alone where the scheduler's forward process is another.

    Raises:
        SamplingError: Saying which dynamics this scheduler can have.
    """
    from alignment.policy.networks.loading import trained_scheduler

    if not dynamics.needs_flow:
        return
    try:
        flow = isinstance(read_path(trained_scheduler(scheduler)), RectifiedFlow)
    except SchedulerError:
        flow = False
    if not flow:
        raise SamplingError(
            f"{type(dynamics).__name__} is defined on rectified flows alone, and {type(scheduler).__name__} steps "
            "another forward process; use ddim or coefficient_preserving"
        )


def check_noise(dynamics: Dynamics, scheduler: Any, rounds: int, trained: Iterable[int]) -> None:
    """Refuse steps that are to be trained but get no noise from the dynamics, in a call of `rounds` steps.

    A scheduler that cannot be set up without its pipeline is not checked.

    Raises:
        SamplingError: Naming the first such step.
    """
    grid = _grid(scheduler, rounds)
    if grid is None:
        return
    for k in sorted(set(trained)):
        if k < len(grid) and not dynamics.step(grid, k, k + 1).random:
            raise without_noise(dynamics, k)


def _grid(scheduler: Any, rounds: int) -> Grid | None:
    from alignment.policy.networks.loading import trained_scheduler

    own = trained_scheduler(copy.deepcopy(scheduler))
    # How far the pipeline shifts its times depends on the size of the picture; which steps have noise does not.
    shift = {"mu": 1.0} if own.config.get("use_dynamic_shifting") else {}
    try:
        own.set_timesteps(rounds, **shift)
        return read_grid(own, own.timesteps)
    except (ValueError, TypeError):
        return None


def sampled_apart(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the keys of adapters that sample and are not trained against, where that cannot be, and why."""
    if issubclass(run.source.produces, Samples | Pairs):
        return
    for k, adapter in enumerate(run.policy.adapters):
        if adapter.when == "sampling":
            yield (
                f"policy.adapters.{k}.when",
                f"{type(run.objective).__name__} learns from the very steps that were sampled, which have to be those "
                "of the weights that are trained: the first ratio would not be 1, or the gradient would be of other "
                "samples. Use always, or an objective that learns from clean samples or pairs (nft, dpo, ...)",
            )
