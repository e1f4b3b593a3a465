"""What the examples add trains, by its name in a config and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.cli import main as cli

ROOT = Path(__file__).parents[2]
SMALL = ("steps=1", "source.prompts=2", "source.group_size=4", "evaluation.prompts=null")
STEPS = ("source.prompts_per_call=2", "source.window.steps=[0]", "source.reward={type: jpeg}")
FUNCTION = "{type: function, call: 'examples.add_a_reward:one_bright_spot'}"
ADDED = {
    "a function": ("quickstart", *STEPS, f"source.reward={FUNCTION}"),
    "a reward": ("quickstart", *STEPS, "source.reward={type: 'examples.add_a_reward_model:Warmth', gain: 2.0}"),
    "a dynamics": ("quickstart", *STEPS, "source.dynamics={type: 'examples.add_a_dynamics:EarlyNoise', share: 0.5}"),
    "an advantage": ("quickstart", *STEPS, "source.advantage={type: 'examples.add_an_advantage:Places'}"),
    "an objective": ("quickstart", *STEPS, "objective={type: 'examples.add_an_objective:Unclipped', weight: equal}"),
    "a source": ("quickstart_nft", "source.type=examples.add_a_source:Winners", "source.reward={type: jpeg}"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ADDED)
def test_it_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe, *words = ADDED[name]
    (tmp_path / "prompts.txt").write_text("two red circles\none blue square\n")
    here = (f"output.folder={tmp_path}", f"data.prompts={tmp_path}/prompts.txt")
    assert cli.run(["train", recipe, "name=added", *here, *SMALL, *words]) == 0
    [line] = (tmp_path / "added" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["grad/norm"] > 0
