"""Run recipes for the same training time on several seeds, and set them side by side.

    python -m examples.benchmarks.recipes configs/quickstart/quickstart{,_dancegrpo}.yaml ...

With `--steps` every recipe takes so many, with `--own-steps` those of its own config. Else each first runs a few steps
to learn what a step costs here, and with `--seconds` takes as many as fit into that time, evaluation not counted. With
none of these the first one takes the steps of its config, and every other one as many as fit into the time of those.
Every run is an ordinary run in the folder. A run that is finished there is not run again, so that a benchmark that was
stopped goes on where it was. The table is written as JSON, and with `--table` into a page of Markdown, between the
marks `<!-- NAME -->` and `<!-- end of NAME -->` of its `--section`, where rows of recipes that were not asked for stay
as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment.config.load import load
from alignment.reports import run_folder
from examples.benchmarks.conditions import code, processor
from examples.benchmarks.gains_page import HEADINGS, Row, write_rows

CALIBRATION_STEPS = 13
Outcome = Mapping[str, Any]
"""What a finished run says of itself."""


def train(recipe: str, *overrides: str, log: Path, threads: int) -> None:
    """Run one training, its output in `log`."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "alignment", "train", recipe, "output.overwrite=true", *overrides]
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT, env=environment)


def seconds_a_step(recipe: str, folder: Path, threads: int) -> float:
    """Return the mean seconds of a step, the first one left out: windows that move make steps of unequal length."""
    name = f"{Path(recipe).stem}-calibration"
    if not (folder / name / run_folder.SUMMARY).exists():
        common = (f"name={name}", f"output.folder={folder}", "evaluation.prompts=null", f"steps={CALIBRATION_STEPS}")
        train(recipe, *common, log=folder / f"{name}.log", threads=threads)
    lines = run_folder.read_metrics(folder / name / run_folder.METRICS)
    return statistics.mean(line["seconds/total"] for line in lines[1:])


def outcome(folder: Path) -> Outcome:
    """Return what a finished run says of itself."""
    summary = json.loads((folder / run_folder.SUMMARY).read_text(encoding="utf-8"))
    lines = run_folder.read_metrics(folder / run_folder.METRICS)
    return {
        "steps": summary["steps"],
        "wall_seconds": summary["wall_seconds"],
        "training_seconds": sum(line["seconds/total"] for line in lines),
        "evaluation": summary["evaluation"],
    }


def metric_of(run: Outcome, metric: str) -> Mapping[str, Any] | None:
    """Return a held-out metric of a run, also where it is a part of a part; None if it has none."""
    found = (ends for name, ends in run["evaluation"].items() if name.split("/")[-1] == metric)
    return next(found, None)


def row_of(recipe: str, runs: Sequence[Outcome], metric: str) -> Row | None:
    """Return what a recipe did to a held-out metric; None where a run does not have it."""
    ends = [end for run in runs if (end := metric_of(run, metric)) is not None]
    if len(ends) < len(runs):
        return None
    return Row(
        recipe,
        tuple(run["steps"] for run in runs),
        statistics.mean(run["training_seconds"] for run in runs),
        statistics.mean(end["base"]["mean"] for end in ends),
        statistics.mean(end["final"]["mean"] for end in ends),
        tuple(end["final"]["mean"] - end["base"]["mean"] for end in ends),
    )


def table(found: Mapping[str, Sequence[Outcome]], metrics: Sequence[str]) -> Table:
    """Return a row a recipe and metric: means over seeds before and after, and the gain of each seed."""
    made = Table(title="held-out prompts")
    for heading in ("metric", *HEADINGS):
        made.add_column(heading)
    for recipe, runs in found.items():
        for metric in metrics:
            if (row := row_of(recipe, runs, metric)) is not None:
                made.add_row(metric, recipe, *row.cells)
    return made


def steps_of(given: argparse.Namespace, pool: ThreadPoolExecutor) -> dict[str, int]:
    """Return how many steps each recipe takes."""
    if given.steps is not None:
        return dict.fromkeys(given.recipes, given.steps)
    if given.own_steps:
        return {recipe: load(recipe).steps for recipe in given.recipes}
    costs = list(pool.map(lambda recipe: seconds_a_step(recipe, given.folder, given.threads), given.recipes))
    budget = given.seconds or load(given.recipes[0]).steps * costs[0]
    return {recipe: max(1, math.floor(budget / cost)) for recipe, cost in zip(given.recipes, costs, strict=True)}


def run_all(given: argparse.Namespace) -> dict[str, list[Outcome]]:
    """Run what is not finished, and return every recipe's outcomes, a seed each."""
    given.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(given.parallel) as pool:
        steps = steps_of(given, pool)
        jobs = [(recipe, seed) for recipe in given.recipes for seed in given.seeds]

        def one(job: tuple[str, int]) -> Outcome:
            recipe, seed = job
            name = f"{Path(recipe).stem}-seed{seed}"
            if not (given.folder / name / run_folder.SUMMARY).exists():
                overrides = [f"name={name}", f"output.folder={given.folder}", f"seed={seed}", f"steps={steps[recipe]}"]
                train(recipe, *overrides, *given.set, log=given.folder / f"{name}.log", threads=given.threads)
            return outcome(given.folder / name)

        outcomes = list(pool.map(one, jobs))
    found: dict[str, list[Outcome]] = {}
    for (recipe, _), result in zip(jobs, outcomes, strict=True):
        found.setdefault(Path(recipe).stem, []).append(result)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run everything that these words ask for; None: those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="training time of every run; default: that of the first recipe")
    length.add_argument("--steps", type=int, help="steps of every run")
    length.add_argument("--own-steps", action="store_true", help="steps of every recipe's own config")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of each run")
    parser.add_argument("--metrics", nargs="+", default=["strict", "graded"])
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument(
        "--table", type=Path, help="a page of Markdown, into whose table the rows of the first metric are written"
    )
    parser.add_argument("--section", default="table", help="of that page")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="laid over every recipe")
    given = parser.parse_args(argv)
    found = run_all(given)
    Console(width=160).print(table(found, given.metrics))
    (given.folder / f"{given.section}.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
    if given.table is not None:
        where = f"{processor()} with {os.cpu_count()} cores, {given.parallel} at once, threads: {given.threads}"
        rows = [row for recipe, runs in found.items() if (row := row_of(recipe, runs, given.metrics[0])) is not None]
        recipes = os.path.relpath(Path(given.recipes[0]).parent, given.table.parent)
        below = f"Seeds {' '.join(map(str, given.seeds))}; {where}; {code()}."
        write_rows(given.table, given.section, rows, given.metrics[0], recipes, below)


if __name__ == "__main__":
    main()
