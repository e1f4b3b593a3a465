"""Curves of several runs in one picture.

`python -m alignment.reports.compare RUN RUN ... --metric strict --output curves.png`.

Runs of one recipe that differ in their seed are averaged: each seed is a thin line, their mean a thick one, the band
Student's 95 % interval over seeds. A recipe with a single run has the interval of each evaluation, over prompts.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment.errors import DataError, VisalignError
from alignment.reports import run_folder
from alignment.reports.figures import Columns
from alignment.reports.run_folder import cannot_write
from alignment.reports.statistics import Interval, interval, over_runs
from alignment.reports.terminal import complain, show

COLOURS = ("#2f6fde", "#d2691e", "#1f9d72", "#8a5cd6", "#c93d7f", "#6b6e78")
AXES = ("steps", "seconds")


@dataclass(frozen=True)
class Curve:
    """A metric of one run.

    Attributes:
        steps: Steps done at each point; ascending.
        at: Where each point lies along the bottom: the steps again, or seconds of training.
        points: Mean and interval at each.
    """

    steps: tuple[int, ...]
    at: tuple[float, ...]
    points: tuple[Interval, ...]


def read_curve(folder: Path, metric: str, axis: str = "steps") -> Curve:
    """Return a held-out metric of a run or, where no evaluation has it, a metric of its steps.

    Args:
        folder: The run's folder.
        metric: A score of the evaluations ("strict"), else a name of `metrics.jsonl` ("reward/mean").
        axis: "steps", or "seconds" of training: the time of the steps so far, evaluations and checkpoints left out.

    Raises:
        DataError: If the run does not have the metric, or not the seconds.
    """
    columns = Columns(run_folder.read_metrics(folder / run_folder.METRICS))
    evaluations = run_folder.read_evaluations(folder)
    found = {
        step: interval(result.scores[metric].tolist(), result.prompts)
        for step, result in evaluations.values()
        if metric in result.scores
    }
    if not found and metric in columns:
        values = columns[metric].tolist()
        numbered = zip(columns.step.tolist(), values, strict=True)
        found = {int(step): Interval(value, math.nan, math.nan, 1) for step, value in numbered}
    if not found:
        held_out = sorted({name for _, result in evaluations.values() for name in result.scores})
        raise DataError(f"{folder} has no metric {metric!r}; its evaluations have: {', '.join(held_out) or 'nothing'}")
    steps = tuple(found)
    at = tuple(map(float, steps)) if axis == "steps" else _seconds(folder, columns, steps)
    return Curve(steps, at, tuple(found.values()))


def _seconds(folder: Path, columns: Columns, steps: Sequence[int]) -> tuple[float, ...]:
    if "seconds/total" not in columns:
        raise DataError(f"{folder / run_folder.METRICS} has no seconds/total, so only steps can be the axis")
    passed = np.concatenate([[0.0], np.cumsum(np.nan_to_num(columns["seconds/total"]))])
    return tuple(float(passed[min(step, len(passed) - 1)]) for step in steps)


def average(curves: Sequence[Curve]) -> Curve:
    """Return the mean curve of runs that differ in their seed, with its interval over them.

    Only the steps that every run has are kept. The bottom axis is averaged too, for seconds differ from run to run.

    Raises:
        DataError: If the runs have no step in common.
    """
    if len(curves) == 1:
        return curves[0]
    steps = sorted(set(curves[0].steps).intersection(*(curve.steps for curve in curves)))
    if not steps:
        raise DataError("the runs of one recipe were evaluated at different steps; label them apart: LABEL=FOLDER")
    rows = [[curve.steps.index(step) for step in steps] for curve in curves]
    at = np.mean([[curve.at[row] for row in picked] for curve, picked in zip(curves, rows, strict=True)], axis=0)
    means = [[curve.points[row].mean for row in picked] for curve, picked in zip(curves, rows, strict=True)]
    points = tuple(over_runs(values) for values in zip(*means, strict=True))
    return Curve(tuple(steps), tuple(at.tolist()), points)


def draw(groups: dict[str, list[Curve]], metric: str, axis: str = "steps") -> Figure:
    """Return the figure of all recipes, one colour each."""
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "axes.edgecolor": "#b9bac0",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained", dpi=160, facecolor="white")
        axes = figure.add_subplot()
    for number, (label, curves) in enumerate(groups.items()):
        seeds = f" ({len(curves)} seeds)" if len(curves) > 1 else ""
        _draw_group(axes, curves, COLOURS[number % len(COLOURS)], f"{label}{seeds}")
    axes.grid(axis="y", color="#e6e6e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors="#55575f")
    axes.margins(x=0.02)
    axes.set_xlabel("step" if axis == "steps" else "seconds of training", color="#55575f")
    axes.set_ylabel(metric, color="#55575f")
    axes.legend(frameon=False, loc="best")
    return figure


def _draw_group(axes: Axes, curves: Sequence[Curve], colour: str, label: str) -> None:
    mean = average(curves)
    low, high = ([getattr(point, end) for point in mean.points] for end in ("low", "high"))
    axes.fill_between(mean.at, low, high, color=colour, alpha=0.14, linewidth=0)
    if len(curves) > 1:
        for curve in curves:
            axes.plot(curve.at, [point.mean for point in curve.points], color=colour, linewidth=0.9, alpha=0.45)
    marker = "o" if len(mean.at) < 40 else None
    axes.plot(
        mean.at, [point.mean for point in mean.points], color=colour, linewidth=2.2, marker=marker, markersize=4.5,
        label=label,
    )  # fmt: skip


def group(runs: Sequence[str], metric: str, axis: str = "steps") -> dict[str, list[Curve]]:
    """Return the curves of `runs` by recipe, in the order given.

    A run is a folder, or `LABEL=FOLDER`. Without a label it is the folder's name without its seed: `nft-seed0`,
    `nft-seed1` and `nft_s2` are one recipe, nft.

    Raises:
        DataError: If a folder is given twice, which would make the band too narrow.
    """
    groups: dict[str, list[Curve]] = {}
    seen: set[Path] = set()
    for run in runs:
        label, given, path = run.rpartition("=")
        folder = Path(path)
        if not folder.is_dir():
            raise DataError(f"no run folder {folder}; give folders, or LABEL=FOLDER")
        if folder.resolve() in seen:
            raise DataError(f"{folder} is given twice; each run counts once")
        seen.add(folder.resolve())
        name = label if given else re.sub(r"[-_.](seed|s)?[-_]?\d+$", "", folder.resolve().name)
        groups.setdefault(name, []).append(read_curve(folder, metric, axis))
    return groups


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m alignment.reports.compare", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or LABEL=FOLDER")
    parser.add_argument("--metric", required=True, help="a held-out score, or a name of metrics.jsonl")
    parser.add_argument("--axis", choices=AXES, default="steps", help="what runs along the bottom")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="a .png, .svg or .pdf file")
    asked = parser.parse_args(arguments)
    try:
        if asked.output.suffix not in (".png", ".svg", ".pdf"):
            raise DataError(f"--output {asked.output}: expected a name that ends in .png, .svg or .pdf")
        figure = draw(group(asked.runs, asked.metric, asked.axis), asked.metric, asked.axis)
        try:
            figure.savefig(asked.output)
        except OSError as error:
            raise DataError(cannot_write(asked.output, error)) from error
    except VisalignError as error:
        complain(f"error: {error}")
        return error.exit_code
    show(str(asked.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
