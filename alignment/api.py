"""The way from Python: make a run, train it, and look at what it left. `alignment` hands all of this on."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.checkpoints.checkpoint import LATEST
from alignment.config import checks, registry
from alignment.config.listing import kinds
from alignment.config.load import as_written
from alignment.config.load import load as load_run
from alignment.config.run import BatchSettings, Data, Evaluation, Lora, Optimizer, Output, PolicySpec, Run, Snapshots
from alignment.errors import CheckpointError, VisalignError
from alignment.reports import run_folder
from alignment.reports.run_folder import Evaluated
from alignment.reports.table import before_after
from reward_models.base import Media, RewardError, RewardModel, Rewards

__all__ = [
    "BatchSettings", "Data", "Evaluation", "Lora", "Media", "Optimizer", "Output", "PolicySpec", "Result",
    "RewardError", "RewardModel", "Rewards", "Run", "Snapshots", "VisalignError", "load_run", "train",
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a run left in its folder. `Result(Path("runs/quickstart"))` is that of a run trained before, or elsewhere.

    Attributes:
        folder: The run's folder.
    """

    folder: Path

    def __str__(self) -> str:
        """Return the table of before and after, and where the checkpoint and the report are."""
        table = [before_after(self.summary)] if self.summary["evaluation"] else []
        return "\n".join([*table, f"checkpoint: {self.checkpoint}", f"report:     {self.report}"])

    @property
    def summary(self) -> Mapping[str, Any]:
        """The run in numbers, from `summary.json`: "seed", "steps", "wall_seconds", "peak_memory_bytes", "evaluation".

        Raises:
            DataError: If the run has not ended.
        """
        return run_folder.read_json(self.folder / run_folder.SUMMARY)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping of names to numbers for each step, as `pandas.DataFrame(result.metrics)` takes them."""
        return run_folder.read_metrics(self.folder / run_folder.METRICS)

    @property
    def evaluations(self) -> Mapping[str, tuple[int, Evaluated]]:
        """The step and the scores and pictures of each evaluation, by its name: "base", "step-000050", "final"."""
        return run_folder.read_evaluations(self.folder)

    @property
    def checkpoint(self) -> Path:
        """Folder of the newest checkpoint, which plain diffusers loads.

        Raises:
            CheckpointError: If there is none.
        """
        latest = self.folder / LATEST
        if not latest.is_file():
            raise CheckpointError(f"{self.folder} has no checkpoint")
        return self.folder / latest.read_text(encoding="utf-8").strip()

    @property
    def report(self) -> Path:
        """The page that shows all of it."""
        return self.folder / run_folder.REPORT


def train(run: Run, *, resume: str | Path | None = None) -> Result:
    """Train a run, made by `load_run` or in code, and return what it left.

    The run's folder is the one that `visalign train` writes. Start it from the main thread.

    Args:
        run: The run. What is in it is checked as a config is, and what cannot be written into one is refused.
        resume: "latest", or a checkpoint's folder to continue from; "auto": the latest, or the start if there is none.

    Raises:
        VisalignError: Anything that is the user's to mend; a reward's is a RewardError.
    """
    from alignment.training import session  # and with it diffusers, which the other names do without

    run = as_written(run)
    checks.check(run, checks.processes())
    session.train(run, None if resume is None else str(resume))
    return Result(Path(run.output.folder) / run.name)


def named(name: str) -> object:
    """Return what is public under this name here, or the class of a config's type that is called so.

    Raises:
        AttributeError: If there is none, or several kinds have one of this name.
    """
    if name in __all__:
        return globals()[name]
    found = [(kind, short) for kind, short, cls in _types() if cls == name]
    if len(found) == 1:
        return registry.find(*found[0])
    if not found:
        raise AttributeError(f"module 'alignment' has no attribute {name!r}")
    homes = " or ".join(registry.find(*one).__module__ for one in found)
    raise AttributeError(f"several kinds have a {name}: import it from {homes}")


def names() -> Sequence[str]:
    """Return every name that `named` knows."""
    count = Counter(cls for _, _, cls in _types())
    return sorted({*__all__, *(cls for cls, times in count.items() if times == 1)})


@functools.cache
def _types() -> tuple[tuple[registry.Kind, str, str], ...]:
    """Return (kind, name in a config, name of the class) of every type."""
    return tuple((kind, short, cls) for kind in kinds(Run).values() for short, cls in registry.known(kind).items())
