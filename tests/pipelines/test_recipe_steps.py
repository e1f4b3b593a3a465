"""Every recipe for a real model takes a step on the tiny twin of its pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.policy import latents
from tests.support.recipe_twins import RECIPES, take_step, tiny_run, write_data
from tests.support.tiny_rewards import Shelf


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder with prompts and samples."""
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latents, "RETURNS", latents.RETURNS)  # what a step on a twin changes


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data, to which every tiny pipeline that is needed comes once."""
    folder = tmp_path_factory.mktemp("twins")
    write_data(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_a_recipe_takes_a_step_on_its_twin(path: Path, twins: Path, tiny_rewards: Shelf) -> None:
    take_step(tiny_run(path, twins, tiny_rewards))
