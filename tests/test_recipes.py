"""Every recipe for a real model says how far it was tried, and went so far: loaded, dry-run, a sharded step.

A step of each on one process is taken with the pipelines, in tests/pipelines.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignment.cli import main as cli
from alignment.config.load import load
from alignment.policy import latents
from alignment.preflight.plan.blueprint import ARCHITECTURES
from tests.equivalence.test_processes import launched, torchrun
from tests.support.recipe_twins import RECIPES, in_float32, prompts_for, small, take_step, tiny_run, write_data
from tests.support.tiny_rewards import Shelf

APART = 1e-3
"""Of the update, in float32: Adam's first update makes each number's as large as the rate, also where the gradient is
rounding. Measured: below 2e-5. Another gradient would be further apart than the update is long."""

TRIED = "# Tried: "
LEVELS = (
    "loads",
    "dry-runs",
    "a step on its tiny twin",
    "a sharded step on two processes",
    "a run at full size",
)
"""What a recipe may say it was tried for, in this order; a line beyond the first three needs what shows it."""
FULL = "Never run at full size."

each = pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder with prompts and samples."""
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latents, "RETURNS", latents.RETURNS)  # what a step on a twin changes


def tried(path: Path) -> tuple[str, ...]:
    """Return what a recipe says it was tried for."""
    [line] = [line for line in path.read_text().splitlines() if line.startswith(TRIED)]
    words, closing, rest = line.removeprefix(TRIED).partition(f". {FULL}")
    assert bool(closing) != (LEVELS[-1] in words), "it says whether it ran at full size"
    assert not rest
    return tuple(words.split(", "))


@each
def test_a_recipe_says_how_far_it_was_tried(path: Path) -> None:
    """Tests show the first three of every recipe; nothing shows the last, so that none may claim it."""
    assert tried(path) in (LEVELS[:3], LEVELS[:4])


@each
def test_a_recipe_dry_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", str(path), f"data.prompts={prompts_for(path)}", *small(path), "--dry-run"]) == 0
    assert "This run, " in capsys.readouterr().out


@each
def test_a_missing_prompt_file_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", str(path), "--dry-run"]) == 2
    assert f"data.prompts: there is no file {load(path).data.prompts}" in capsys.readouterr().err


@each
def test_sizes_of_a_recipe_ship(path: Path) -> None:
    assert (ARCHITECTURES / f"{load(path).policy.pipeline}.yaml").is_file()


@pytest.mark.long
@each
def test_a_recipe_is_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", str(path)]) == 0, capsys.readouterr().err
    assert "memory at its peak" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.multi
def test_recipes_take_a_sharded_step(tmp_path: Path, tiny_rewards: Shelf) -> None:
    """Those that say so, and no others, take a step as they are and come, in float32, to the weights of one process."""
    script = Path(__file__).parent / "equivalence" / "recipes_sharded.py"
    done = launched(*torchrun(2), str(script), str(tmp_path))
    assert done.returncode == 0, done.stderr
    came_through = {file.stem for file in tmp_path.glob("*.safetensors")}
    assert came_through == {name for name, path in RECIPES.items() if LEVELS[3] in tried(path)}
    for name in came_through:
        theirs = load_file(tmp_path / f"{name}.safetensors")
        ours, moved = take_step(in_float32(tiny_run(RECIPES[name], tmp_path, tiny_rewards)))
        apart = torch.cat([(theirs[key] - weight).flatten() for key, weight in ours.items()]).norm().item()
        weights = torch.cat([weight.flatten() for weight in ours.values()]).norm().item()
        assert apart < APART * moved + torch.finfo(torch.float32).eps * weights, name  # a rate may be near rounding
