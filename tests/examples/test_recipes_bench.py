"""The benchmark of recipes: what is finished is not run again, and the table in a page is all that changes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from PIL import Image

from alignment import run_folder
from examples.benchmarks.gains_picture import draw_gains
from examples.benchmarks.recipes import page, run_all, write_page

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
def test_a_finished_benchmark_runs_nothing_and_is_told_best_first(
    folder: Path, seconds: float | None, steps: int | None
) -> None:
    given = argparse.Namespace(
        folder=folder, parallel=1, threads=1, recipes=RECIPES, seeds=SEEDS, seconds=seconds, steps=steps, set=[]
    )
    found = run_all(given)  # there are no such recipes: running one would fail
    told = page(found, "strict", {"one": "../configs/one.yaml", "two": "../configs/two.yaml"}).splitlines()
    assert [row.split("`")[1] for row in told[2:]] == ["two", "one"]
    assert "| 7 7 | 12 | 0.500 | 0.750 | +0.300 +0.200 | +0.250 [" in told[2]


def test_what_stands_around_a_table_stays(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    one, other = "<!-- one -->\nold\n<!-- end of one -->", "<!-- other -->\nold\n<!-- end of other -->"
    file.write_text(f"above\n{one}\nbetween\n{other}\nbelow\n")
    for text in ("first", "second"):
        write_page(file, "other", text)
    assert file.read_text() == f"above\n{one}\nbetween\n{other.replace('old', 'second')}\nbelow\n"
    with pytest.raises(SystemExit, match="has no place for the table 'third'"):
        write_page(file, "third", "text")


def test_the_picture_grows_by_the_recipe(tmp_path: Path) -> None:
    heights = []
    for count in (2, 4):
        draw_gains({f"recipe {i}": [0.1 * i, 0.2, -0.1][: 1 + i] for i in range(count)}, "strict", tmp_path / "g.png")
        with Image.open(tmp_path / "g.png") as picture:
            assert picture.getextrema()[0] == (29, 255)  # the ink of the means on white
            heights.append(picture.height)
    assert heights[1] > heights[0]
