"""A process killed at any file-system call of a save leaves a valid checkpoint, and no debris after the next save."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.forked import start

CALLS = 25  # a save makes more than that; fewer would mean that the kills are not counted any more
AFTER = {"first": {None, 10}, "next": {5, 10}, "same step": {5}}


@pytest.mark.multi
@pytest.mark.slow(18)
@pytest.mark.parametrize("situation", AFTER)
def test_a_kill_at_any_call_leaves_a_valid_checkpoint(tmp_path: Path, situation: str) -> None:
    folder, log = tmp_path / "saves", tmp_path / "log"
    folder.mkdir()
    process = start("tests.faults.kill_at_each_call", [str(folder), situation], os.environ, log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    kills = [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]
    assert len(kills) > CALLS
    assert [kill["killed"] for kill in kills] == [True] * (len(kills) - 1) + [False]
    assert {kill["found"] for kill in kills} == AFTER[situation]
    assert kills[-1]["found"] == max(step for step in AFTER[situation] if step)
    for kill in kills:
        assert kill["left"] == ["checkpoint-15", "latest"], kill
