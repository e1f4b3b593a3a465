"""The benchmark of recipes: what is finished is not run again, and a row of the page changes alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from PIL import Image

from alignment.reports import run_folder
from examples.benchmarks.gains_page import Row, write_rows
from examples.benchmarks.gains_picture import draw_gains
from examples.benchmarks.recipes import row_of, run_all

RECIPES = ["configs/one.yaml", "configs/two.yaml"]
SEEDS = [0, 1]


def finished(folder: Path, gain: float, metric: str = "strict") -> None:
    """Write what a finished run leaves behind, as far as the benchmark reads it."""
    folder.mkdir(parents=True)
    ends = {"base": {"mean": 0.5}, "final": {"mean": 0.5 + gain}}
    summary = {"steps": 7, "wall_seconds": 30.0, "evaluation": {metric: ends}}
    (folder / run_folder.SUMMARY).write_text(json.dumps(summary))
    lines = [json.dumps({"step": step, "seconds/total": 2.0}) for step in range(6)]
    (folder / run_folder.METRICS).write_text("\n".join(lines) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, gains in {"one": (0.1, 0.2), "two": (0.3, 0.2)}.items():
        finished(tmp_path / f"{name}-calibration", 0.0)
        for seed, gain in zip(SEEDS, gains, strict=True):
            finished(tmp_path / f"{name}-seed{seed}", gain, "strict" if name == "one" else "shapes/strict")
    return tmp_path


@pytest.mark.parametrize(("seconds", "steps"), [(180.0, None), (None, 7)])
def test_a_finished_benchmark_runs_nothing(folder: Path, seconds: float | None, steps: int | None) -> None:
    given = argparse.Namespace(
        folder=folder,
        parallel=1,
        threads=1,
        recipes=RECIPES,
        seeds=SEEDS,
        seconds=seconds,
        steps=steps,
        own_steps=False,
        set=[],
    )
    found = run_all(given)  # there are no such recipes: running one would fail
    row = row_of("two", found["two"], "strict")
    assert row is not None
    assert row.cells[:5] == ("7 7", "12", "0.500", "0.750", "+0.300 +0.200")
    assert row_of("two", found["two"], "another") is None


ROWS = {
    "good": Row("good", (3, 4), 180.0, 0.5, 0.75, (0.3, 0.2)),
    "bad": Row("bad", (5, 5), 179.0, 0.5, 0.4, (-0.1, -0.1)),
    "fair": Row("fair", (9, 9), 181.0, 0.5, 0.6, (0.1, 0.1)),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_is_read_as_it_was_written(row: Row) -> None:
    assert Row.read(row.line("../configs")) == row


def test_a_table_grows_recipe_by_recipe_best_first_and_what_stands_around_it_stays(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    one, other = "<!-- one -->\nold\n<!-- end of one -->", "<!-- other -->\n<!-- end of other -->"
    file.write_text(f"above\n{one}\nbetween\n{other}\nbelow\n")
    better = Row("fair", (9, 9), 181.0, 0.5, 0.9, (0.4, 0.4))
    for rows in ([ROWS["good"], ROWS["bad"]], [ROWS["fair"]], [better]):
        write_rows(file, "other", rows, "strict", "../configs", "by whom")
    told = file.read_text()
    assert told.startswith(f"above\n{one}\nbetween\n<!-- other -->\n![")
    assert told.endswith("\n\nby whom\n<!-- end of other -->\nbelow\n")
    lines = [line for line in told.splitlines() if line.startswith("| [")]
    assert [Row.read(line) for line in lines] == [better, ROWS["good"], ROWS["bad"]]
    assert (tmp_path / "page_other.png").exists()
    with pytest.raises(SystemExit, match="has no place for the table 'third'"):
        write_rows(file, "third", [], "strict", "../configs", "by whom")


def test_the_picture_grows_by_the_recipe(tmp_path: Path) -> None:
    heights = []
    for count in (2, 4):
        draw_gains({f"recipe {i}": [0.1 * i, 0.2, -0.1][: 1 + i] for i in range(count)}, "strict", tmp_path / "g.png")
        with Image.open(tmp_path / "g.png") as picture:
            assert picture.getextrema()[0] == (29, 255)  # the ink of the means on white
            heights.append(picture.height)
    assert heights[1] > heights[0]
