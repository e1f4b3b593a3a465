"""A run's folder before its first step: refused where it holds a run, moved aside where the config asks for it."""

from __future__ import annotations

from pathlib import Path

from alignment.checkpoints.checkpoint import FINISHED, LOCK, UNFINISHED
from alignment.errors import ConfigError
from alignment.reports import run_folder

BEFORE_ANY_STEP = {
    LOCK,
    run_folder.CONFIG,
    run_folder.ENVIRONMENT,
    run_folder.EVALUATIONS,
    "tracker-id",
    "tensorboard",
    "wandb",
}
"""What a run writes before its first step."""


def holds_something(folder: Path) -> bool:
    """Return whether something is in the folder beside its lock."""
    return folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())


def holds_run(folder: Path) -> bool:
    """Return whether the folder holds more than a run leaves that died before it recorded its first step."""
    if not folder.is_dir():
        return False
    metrics = folder / run_folder.METRICS
    has_lines = metrics.is_file() and b"\n" in metrics.read_bytes()
    left = BEFORE_ANY_STEP if has_lines else BEFORE_ANY_STEP | {run_folder.METRICS}
    return any(path.name not in left and not UNFINISHED.fullmatch(path.name) for path in folder.iterdir())


def refuse_run(folder: Path) -> None:
    """Refuse a folder that holds a run.

    Raises:
        ConfigError: Saying what can be done with it.
    """
    if holds_run(folder):
        saved = any(FINISHED.fullmatch(path.name) for path in folder.iterdir())
        state = "exists: continue it with --resume latest," if saved else "exists and has no checkpoint:"
        raise ConfigError(
            f"{folder} {state} choose another name with name=NAME, or move it aside with output.overwrite=true"
        )


def move_aside(folder: Path) -> None:
    """Give a folder another name, `FOLDER.old-N`."""
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.old-{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}.old-{number}"))
