"""Every config that ships loads, describes itself, and comes back from its resolved form."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.config import build as config
from alignment.config import checks
from alignment.config.build import build
from alignment.config.load import load
from alignment.config.run import Run
from alignment.config.shipped import recipes
from alignment.config.yaml_nodes import parse

ROOT = Path(__file__).parents[1]
WHOLE = recipes().values()


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_a_config_loads_and_round_trips(path: Path) -> None:
    run = load(path)
    assert build(Run, parse(config.resolved(run), "resolved.yaml")) == run
    assert checks.describe(run, world_size=1)


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_what_a_config_needs_and_ships_is_there(path: Path) -> None:
    run = load(path)
    needed = (run.policy.pipeline, run.data.prompts, run.evaluation.prompts)
    missing = [name for name in needed if name and name.startswith("assets/") and not (ROOT / name).exists()]
    assert not missing
