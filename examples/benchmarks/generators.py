"""Compare the tiny FLUX with what four recipes and the best of four make of it, by every metric that needs no network.

    python -m examples.benchmarks.generators [--limit N] [--table docs/evaluation.md]

Recipes are trained as their configs say, pictures are made, chosen, scored and compared, all by the commands a user
has, in `--folder`. What is there is not made again: the same command goes on where it was stopped. The table goes into
the page's section `bench-eval`, with the conditions. `--limit N` takes N steps and N pictures of each prompt, in a
folder of its own, to see that it works; its numbers mean nothing, and go into no page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.config.load import load
from alignment.reports import run_folder
from examples.benchmarks.conditions import code, conditions, said
from examples.benchmarks.gains_page import parts

BASE, PROMPTS = "assets/tiny_flux", "assets/prompts/shapes_test.txt"
RECIPES = {name: f"configs/quickstart/{name}.yaml" for name in (
    "quickstart", "quickstart_colour", "quickstart_nft", "quickstart_vipo"
)}  # fmt: skip
TRIES = 4
CALL = ("--dtype", "float32", "--call", "height=32", "width=32", "num_inference_steps=4", "max_sequence_length=12")
"""The same for all: recipes differ in what they compute in, and pictures would for that alone."""
REWARDS = ("--reward", "shapes", "strict=1.0", "--reward", "colour", "--reward", "sharpness", "--reward", "exposure")
SECTION = "bench-eval"
HEADINGS = ("measure", "base")


def visalign(*words: object) -> None:
    """Run a command of visalign, and end where it fails."""
    command = [sys.executable, "-m", "alignment", *map(str, words)]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}; the same command goes on")


def trained(recipe: str, folder: Path, limit: int | None) -> Path:
    """Return the last checkpoint of a recipe, trained as far as it is not yet."""
    name = Path(recipe).stem
    steps = limit or load(recipe).steps
    if not (folder / name / run_folder.SUMMARY).is_file():
        shorter = (f"steps={steps}", "evaluation.prompts=null") if limit else ()
        visalign("train", recipe, "--resume", "auto", f"name={name}", f"output.folder={folder}", *shorter)
    return folder / name / f"checkpoint-{steps}"


def compared(folder: Path, limit: int | None) -> dict[str, Any]:
    """Make and compare what is missing, and return what `eval.json` holds."""
    checkpoints = {name: trained(recipe, folder, limit) for name, recipe in RECIPES.items()}
    pictures, chosen = limit or 112, folder / f"best_of_{TRIES}"
    by = ("--best-of", TRIES, "--by", "shapes", "strict=1.0")
    visalign("generate", BASE, "--prompts", PROMPTS, "--pictures", pictures, *by, *CALL, "--output", chosen)
    subjects = [f"base={BASE}", *(f"{name}={path}" for name, path in checkpoints.items())]
    subjects.append(f"best_of_{TRIES}={chosen / 'chosen'}")
    visalign("eval", *subjects, "--pictures", pictures, *REWARDS, *CALL, "--output", folder / "compared")
    return json.loads((folder / "compared" / "eval.json").read_text(encoding="utf-8"))


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return a table in Markdown: a row for each measure, a column for each subject, changes against the base."""
    (suite,) = found["suites"].values()
    beside = suite["comparisons"]
    rows: dict[str, list[str]] = {}
    for name, comparison in beside.items():
        for change in (*comparison["changes"], *comparison["looks"]):
            row = rows.setdefault(change["measure"], [_number(change["base"]["mean"])] + [""] * len(beside))
            row[1 + list(beside).index(name)] = _moved(change)
        for title, drift in comparison["drift"].items():
            row = rows.setdefault(f"distance from the base ({title})", ["0"] + [""] * len(beside))
            row[1 + list(beside).index(name)] = _number(drift["mean"])
    headings = (*HEADINGS, *beside)
    return [
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
        *(f"| {' | '.join((measure, *cells))} |" for measure, cells in rows.items()),
    ]


def _moved(change: Mapping[str, Any]) -> str:
    """Return a change with its interval; in bold where it tells the two apart."""
    moved = change["change"]
    ends = f"{_signed(moved['mean'])} [{_signed(moved['low'])}, {_signed(moved['high'])}]"
    return ends if change["verdict"] == "even" else f"**{ends}**"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.2g}"


def write(page: Path, found: Mapping[str, Any], under: str) -> None:
    """Put the table into its section of a page; what is around it stays."""
    before, _, after = parts(page, SECTION)
    (suite,) = found["suites"].values()
    told = f"{suite['prompts']} prompts, {suite['pictures']} pictures of each subject; {under}."
    page.write_text("\n".join((before, *lines(found), "", told, after)), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Do what these words ask for; None: those of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_eval"))
    parser.add_argument("--limit", type=int, help="steps, and pictures of each prompt")
    parser.add_argument("--table", type=Path, help="a page of Markdown")
    given = parser.parse_args(argv)
    if given.limit is not None and (given.table is not None or given.limit < 1):
        parser.error("--limit takes 1 or more, and goes into no page: leave --table out")
    under = f"{said(conditions())}; {code()}"
    found = compared(given.folder / "tried" if given.limit else given.folder, given.limit)
    print("\n".join(lines(found)))
    if given.table is not None:
        write(given.table, found, under)


if __name__ == "__main__":
    main()
