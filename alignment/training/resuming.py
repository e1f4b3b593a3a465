"""Whether and where a run goes on: from which checkpoint, and whether it is the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from alignment.checkpoints.checkpoint import AUTO, LATEST, Checkpoints
from alignment.config import build, yaml_nodes
from alignment.config.run import Run
from alignment.errors import ConfigError
from alignment.training.runtime.runtime import Runtime


def of_today(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return a run's resolved config with the fields that came later at their defaults, as which that run went."""
    try:
        return yaml.safe_load(build.resolved(build.build(Run, yaml_nodes.parse(yaml.safe_dump(config), "checkpoint"))))
    except ConfigError:  # a class that is not there any more: the config alone is compared
        return config


def where_from(resume: str | None, checkpoints: Checkpoints, runtime: Runtime) -> Path | None:
    """Return the checkpoint to continue from, as the main process sees it; None for the start."""
    path = None
    if runtime.main and resume is not None and (resume != AUTO or checkpoints.hold_any()):
        path = checkpoints.find(LATEST if resume == AUTO else resume)
    return runtime.world.everyone(path)[0]


def refuse_fewer_steps(run: Run, done: int) -> None:
    """Refuse to go on with a run that has done more than is asked for.

    Raises:
        ConfigError: Saying what can be done.
    """
    if run.steps < done:
        raise ConfigError(
            f"steps is {run.steps}, but the checkpoint to resume from has done {done}: set steps to {done} or more, "
            "or resume from an earlier checkpoint with --resume PATH"
        )
