"""Run recipes for the same training time on several seeds, and set them side by side.

    python examples/benchmarks/recipes.py configs/quickstart.yaml configs/quickstart_dancegrpo.yaml ...

Each recipe first runs a few steps to learn what a step costs here. The first recipe then takes the steps of its config;
every other one takes as many as fit into the time of those, evaluation not counted. Every run is an ordinary run in
`runs/`; the table is written as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment import config, run_folder
from alignment.statistics import over_runs

CALIBRATION_STEPS = 6


def train(recipe: str, *overrides: str, log: Path, threads: int) -> None:
    """Run one training, its output in `log`."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "alignment", "train", recipe, "output.overwrite=true", *overrides]
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT, env=environment)


def seconds_a_step(recipe: str, folder: Path, threads: int) -> float:
    """Return the median seconds of a step, the first one left out."""
    name = f"{Path(recipe).stem}-calibration"
    common = (f"name={name}", f"output.folder={folder}", "evaluation.prompts=null", f"steps={CALIBRATION_STEPS}")
    train(recipe, *common, log=folder / f"{name}.log", threads=threads)
    lines = run_folder.read_metrics(folder / name / run_folder.METRICS)
    return statistics.median(line["seconds/total"] for line in lines[1:])


def outcome(folder: Path) -> dict[str, Any]:
    """Return what a finished run says of itself."""
    summary = json.loads((folder / run_folder.SUMMARY).read_text(encoding="utf-8"))
    lines = run_folder.read_metrics(folder / run_folder.METRICS)
    return {
        "steps": summary["steps"],
        "wall_seconds": summary["wall_seconds"],
        "training_seconds": sum(line["seconds/total"] for line in lines),
        "evaluation": summary["evaluation"],
    }


def table(found: dict[str, list[dict[str, Any]]], metrics: list[str]) -> Table:
    """Return a row a recipe: means over seeds before and after, and the gain of each seed."""
    made = Table(title="held-out prompts; gain of each seed, and its mean with a 95 % interval over seeds")
    for heading in ("recipe", "steps", "training s", "metric", "before", "after", "gain of each seed", "mean gain"):
        made.add_column(heading)
    for recipe, runs in found.items():
        for metric in metrics:
            ends = [run["evaluation"][metric] for run in runs if metric in run["evaluation"]]
            if not ends:
                continue
            gains = [end["final"]["mean"] - end["base"]["mean"] for end in ends]
            spread = over_runs(gains) if len(gains) > 1 else None
            made.add_row(
                recipe,
                str(runs[0]["steps"]),
                f"{statistics.mean(run['training_seconds'] for run in runs):.0f}",
                metric,
                f"{statistics.mean(end['base']['mean'] for end in ends):.3f}",
                f"{statistics.mean(end['final']['mean'] for end in ends):.3f}",
                " ".join(f"{gain:+.3f}" for gain in gains),
                "" if spread is None else f"{spread.mean:+.3f} [{spread.low:+.3f}, {spread.high:+.3f}]",
            )
    return made


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of each run")
    parser.add_argument("--metrics", nargs="+", default=["strict", "graded"])
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    first = config.load(given.recipes[0])
    with ThreadPoolExecutor(given.parallel) as pool:
        costs = list(pool.map(lambda recipe: seconds_a_step(recipe, given.folder, given.threads), given.recipes))
        budget = first.steps * costs[0]
        steps = dict(zip(given.recipes, (math.floor(budget / cost) for cost in costs), strict=True))
        jobs = [(recipe, seed) for recipe in given.recipes for seed in given.seeds]

        def one(job: tuple[str, int]) -> dict[str, Any]:
            recipe, seed = job
            name = f"{Path(recipe).stem}-seed{seed}"
            overrides = [f"name={name}", f"output.folder={given.folder}", f"seed={seed}", f"steps={steps[recipe]}"]
            train(recipe, *overrides, log=given.folder / f"{name}.log", threads=given.threads)
            return outcome(given.folder / name)

        outcomes = list(pool.map(one, jobs))
    found: dict[str, list[dict[str, Any]]] = {}
    for (recipe, _), result in zip(jobs, outcomes, strict=True):
        found.setdefault(Path(recipe).stem, []).append(result)
    Console(width=160).print(table(found, given.metrics))
    (given.folder / "recipes.json").write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
