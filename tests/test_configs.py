"""Every config that ships loads, describes itself, and comes back from its resolved form."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.config import build as config
from alignment.config import checks
from alignment.config.build import build
from alignment.config.load import load
from alignment.config.run import Run
from alignment.config.yaml_nodes import parse

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
# What others read: accelerate's own files, sizes of pipelines; and layers, which a whole config names in `extends`.
ELSEWHERE = {"accelerate", "architectures", "models", "algorithms"}
WHOLE = sorted(p for p in CONFIGS.rglob("*.yaml") if not ELSEWHERE & set(p.relative_to(CONFIGS).parts))


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_loads_and_round_trips(path: Path) -> None:
    run = load(path)
    assert build(Run, parse(config.resolved(run), "resolved.yaml")) == run
    assert checks.describe(run, world_size=1)


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_what_a_config_needs_and_ships_is_there(path: Path) -> None:
    run = load(path)
    needed = (run.policy.pipeline, run.data.prompts, run.evaluation.prompts)
    missing = [name for name in needed if name and name.startswith("assets/") and not (ROOT / name).exists()]
    assert not missing
