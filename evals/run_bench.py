"""`visalign rewards bench`: read a benchmark, measure reward models one after the other, write what was found."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alignment import __version__
from alignment.config import build
from alignment.errors import ConfigError, DataError
from alignment.reports import terminal
from alignment.reports.console import Console
from evals import bench_report
from evals.bench import Bench, Measured, agree, measure
from evals.benchmarks.base import Benchmark, Comparison
from evals.probes import PROBES
from evals.scoring import BatchScorer


@dataclass(frozen=True)
class Wanted:
    """What is measured on, and how much.

    Attributes:
        benchmark: A type of benchmark.
        fields: `key=value` words for it.
        limit: Comparisons used, from the first on; None for all.
        probed: Comparisons whose media are probed; 0 for none.
        output: Folder of the results.
    """

    benchmark: str
    fields: tuple[str, ...]
    limit: int | None
    probed: int
    output: Path


def run(scorers: Mapping[str, Callable[[], BatchScorer]], wanted: Wanted) -> Bench:
    """Measure each reward model, write the results and return them.

    Models are loaded one at a time: the memory of the first is free before the second is loaded.

    Raises:
        ConfigError: If there is no such benchmark or reward.
        DataError: If the benchmark cannot be read.
        RewardError: If a reward model fails.
    """
    if wanted.probed < 0:
        raise ConfigError(f"--probed is 0 or more, got {wanted.probed}")
    benchmark = build.of_kind(Benchmark, wanted.benchmark, wanted.fields)
    comparisons = benchmark.read()[: wanted.limit]
    if not comparisons:
        raise DataError(f"{wanted.benchmark} has no comparisons")
    bench_report.prepare(wanted.output)
    measured: dict[str, Measured] = {}
    for title, load in scorers.items():
        scorer = load()
        scorer.model.check(tuple(dict.fromkeys(c.prompt for c in comparisons)))
        measured[title] = _measured(title, scorer, comparisons, wanted.probed)
    made = Bench(wanted.benchmark, tuple(comparisons), measured, agree(measured))
    bench_report.write(made, wanted.output, conditions(wanted))
    return made


def _measured(title: str, scorer: BatchScorer, comparisons: list[Comparison], probed: int) -> Measured:
    decided = min(probed, sum(c.human != 0 for c in comparisons))
    total = 2 * len(comparisons) + 2 * decided * (len(PROBES) + 1)  # each probe, and other captions
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        return measure(scorer, comparisons, probed, lambda count: progress.advance(task, count))


def conditions(wanted: Wanted) -> dict[str, str]:
    """Return where and how it was measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "benchmark": " ".join([wanted.benchmark, *wanted.fields]),
        "device": device,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "visalign": __version__,
    }


def show(made: Bench, output: Path, *, as_json: bool) -> None:
    """Print the table and where the page is, or the JSON."""
    if as_json:
        terminal.show(json.dumps(json.loads((output / bench_report.JSON).read_text(encoding="utf-8"))))
        return
    Console().print(bench_report.table(made))
    terminal.show(f"report: {output / bench_report.PAGE}")
