"""Where a step's time goes: intervals are put into phases, and phases cover what a run does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.objectives.forward_process.nft import NFT
from alignment.preflight.profile.phases import Span, by_phase
from alignment.preflight.profile.profile import TRACE, as_dict, profiled
from alignment.sources.credited import PHASE
from alignment.sources.on_policy import OnPolicy
from alignment.sources.scouting.scout import Cheaply, Scout
from tests.support.toy import REWARD, saved, toy_run


def test_operators_belong_to_the_innermost_phase_of_their_thread_or_of_the_main_one() -> None:
    found = by_phase([
        Span("before", 0.0, 0.5, 0.5, 1),
        Span(f"{PHASE}sampling", 1.0, 5.0, 0.0, 1),
        Span("mul", 1.0, 1.5, 0.5, 1),
        Span(f"{PHASE}reward", 2.0, 3.0, 0.0, 1),
        Span("mul", 2.5, 2.75, 0.25, 1),
        Span("add", 3.0, 4.0, 1.0, 1),
        Span(f"{PHASE}update", 5.0, 7.0, 0.0, 1),
        Span("mul_backward", 5.5, 6.5, 1.0, 2),
        Span(f"{PHASE}scoring", 1.0, 6.0, 0.0, 3),
        Span("clip", 5.5, 5.75, 0.25, 3),
    ])  # fmt: skip
    assert {name: phase.seconds for name, phase in found.items()} == {
        "scoring": 5.0, "sampling": 3.0, "update": 2.0, "reward": 1.0,
    }  # fmt: skip
    spent = {(name, op): (s.calls, s.seconds) for name, phase in found.items() for op, s in phase.operators.items()}
    assert spent == {
        ("scoring", "clip"): (1, 0.25),
        ("sampling", "mul"): (1, 0.5),
        ("sampling", "add"): (1, 1.0),
        ("update", "mul_backward"): (1, 1.0),
        ("reward", "mul"): (1, 0.25),
    }


@pytest.mark.parametrize("steps", [2])
def test_steps_of_a_run_are_covered_by_its_phases(tmp_path: Path, steps: int) -> None:
    folder = saved(tmp_path, updates=1)
    scout = Scout(8, Cheaply(call={"num_inference_steps": 2}))
    run = toy_run(folder, OnPolicy(2, REWARD, group_size=4, scout=scout), NFT(), 9)
    found = profiled(run, steps, tmp_path / "profile")
    assert {"rollout", "reward", "scout", "update"} <= found.keys()
    rollout, update = (found[name].operators for name in ("rollout", "update"))
    # Ten rounds, three layers, one call for both prompts.
    assert rollout["aten::addmm"].calls == steps * 10 * 3
    assert update["AddmmBackward0"].calls > 0
    assert "AddmmBackward0" not in rollout
    told = as_dict(found, steps, tmp_path / "profile")
    assert json.loads(json.dumps(told))["phases"]["rollout"]["seconds"] > 0
    assert json.loads((tmp_path / "profile" / TRACE).read_text())["traceEvents"]
