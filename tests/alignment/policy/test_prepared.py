"""What was found out about a pipeline is told, kept, and the same when a run is resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from alignment.errors import CheckpointError
from alignment.policy.prepared import Prepared, check_same_finds
from alignment.reports import run_folder
from alignment.reports.record import Recorder

FOUND = Prepared(
    pipeline="FluxPipeline",
    scheduler="FlowMatchEulerDiscreteScheduler",
    rounds=4,
    form="a prompt and a picture a row",
    between="they go without the networks",
    row_times=True,
    kept=True,
    released=("text_encoder", "text_encoder_2"),
)


def test_it_is_a_line() -> None:
    told = str(FOUND)
    assert "\n" not in told
    for part in ("FluxPipeline", "4 steps", "a time a row", "text_encoder_2 left memory", "go without the networks"):
        assert part in told


def test_it_is_written_beside_the_versions(tmp_path: Path) -> None:
    with Recorder(tmp_path, total_steps=1, quiet=True, found=FOUND.as_json()):
        pass
    written = json.loads((tmp_path / run_folder.ENVIRONMENT).read_text())
    assert written["prepared"] == FOUND.as_json()
    assert "torch" in written["packages"]


def test_a_run_that_finds_something_else_does_not_go_on() -> None:
    kept = json.loads(json.dumps(FOUND.as_json()))
    check_same_finds(kept, FOUND.as_json())
    check_same_finds({}, FOUND.as_json())  # a checkpoint that does not say
    other = replace(FOUND, row_times=False, released=())
    with pytest.raises(CheckpointError, match=r"released was .*now it is \[\]; row_times was True, now it is False"):
        check_same_finds(kept, other.as_json())
