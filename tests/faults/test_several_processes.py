"""Several processes of one run, one of which fails, hangs or is stopped: one message, an exit code, no hang."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.checkpoints.checkpoint import Checkpoints
from tests.faults import leaves_a_group
from tests.support.runs import prepared_for_the_toy
from tests.support.several import Processes

# On one worker, for the process that these are forked from takes seconds to start.
pytestmark = [pytest.mark.multi, pytest.mark.slow(220), pytest.mark.xdist_group("forked")]

RANK = int(os.environ.get("RANK", "0"))
asked = 0


def due(rank: int) -> bool:
    """Whether this is process `rank`, in the third call of its reward: step 2."""
    global asked
    asked += 1
    return rank == RANK and asked == 3


def fails(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.tensor([1 / 0]) if due(1) else pixels.mean((1, 2, 3, 4))


def hangs(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    hung = due(1)
    if hung:
        Path(os.environ["MARK"]).touch()
    while hung:
        time.sleep(1.0)
    return pixels.mean((1, 2, 3, 4))


def freezes(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Process 1 stops for good once it waits for process 0, which then waits inside an exchange."""
    if due(0):
        mark = Path(os.environ["MARK"])
        mark.touch()
        while mark.exists():
            time.sleep(0.1)
    return pixels.mean((1, 2, 3, 4))


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    return prepared_for_the_toy(tmp_path / "work", toy_folder)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "runs" / "run").glob("checkpoint-*"))


WHOLE_OR_IN_PARTS = pytest.mark.parametrize("shard", ["parallel.shard=1", "parallel.shard=2"])


@WHOLE_OR_IN_PARTS
def test_a_reward_that_fails_on_one_process_costs_no_step(folder: Path, shard: str) -> None:
    run = Processes(folder, fails, "output.save_every=0", shard)
    assert run.ended() == [2, 2]
    [told] = run.told()
    assert "division by zero" in told
    assert told.endswith("checkpoint-2 is saved; continue with --resume latest")
    assert saved(folder) == ["checkpoint-2"]
    Checkpoints(folder / "runs" / "run", keep=1, world_size=2).find()
    assert Processes(folder, fails, "--resume", "latest", "steps=3", shard).ended() == [0, 0]
    assert saved(folder) == ["checkpoint-2", "checkpoint-3"]


@WHOLE_OR_IN_PARTS
def test_a_process_that_hangs_is_named_and_ends_with_the_others(folder: Path, shard: str) -> None:
    run = Processes(folder, hangs, "timeout=20", shard)
    assert run.ended() == [7, 7]
    [told] = run.told()
    assert "process 1 of 2 (sampling, step 2) is stuck; process 0 has waited " in told
    assert "raise timeout (now 20 s)" in told
    assert told.endswith("checkpoint-2 is saved; continue with --resume latest")
    assert saved(folder) == ["checkpoint-2"]


def test_one_that_waits_for_another_heeds_sigterm_and_saves(folder: Path) -> None:
    run = Processes(folder, hangs, "output.save_every=0")
    run.until(lambda: run.mark.exists())  # before that, both would leave between two steps
    run.send(0, signal.SIGTERM)
    assert run.ended() == [128 + signal.SIGTERM] * 2  # the one that hangs ends itself
    [told] = run.told()
    assert "asked to stop; process 1 of 2 (sampling, step 2) did not come to gathering numbers within 5 s" in told
    assert told.endswith("checkpoint-2 is saved; continue with --resume latest")
    assert saved(folder) == ["checkpoint-2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_one_that_is_blocked_in_an_exchange_leaves(folder: Path, number: signal.Signals | None) -> None:
    run = Processes(folder, freezes, f"timeout={600 if number else 20}")
    run.until(lambda: run.mark.exists())
    time.sleep(5.0)  # process 1 has come to the meeting by now; were it later, the test would test less, and pass
    run.send(1, signal.SIGSTOP)
    run.mark.unlink()
    if number:
        time.sleep(2.0)
        run.send(0, number)
    assert run.code(0) == (128 + number if number else 7)
    run.running[1].kill()
    assert run.ended()[1] == -signal.SIGKILL
    [told] = run.told()
    assert ("asked to stop" if number else "process 1 of 2 (sampling, step 2) is lost: no sign of life") in told


@WHOLE_OR_IN_PARTS
def test_a_process_that_is_killed_ends_the_other(folder: Path, shard: str) -> None:
    run = Processes(folder, hangs, "timeout=20", shard)
    run.until(lambda: run.steps() == 2)
    run.running[1].kill()
    assert run.ended() == [7, -signal.SIGKILL]
    [told] = run.told()
    assert re.search(r"process 1 of 2 \(.+\) is lost: no sign of life comes from it", told)
    assert told.endswith("checkpoint-2 is saved; continue with --resume latest")


def test_a_process_that_is_killed_before_it_is_known_to_its_team_ends_the_others(folder: Path) -> None:
    run = Processes(folder, leaves_a_group.brightness, "timeout=8", "parallel.shard=2", "source.prompts=4", size=4)
    assert sorted(run.ended()) == [-signal.SIGKILL, 7, 7, 7]
    [told] = run.told()
    assert "process 1 of 4 (starting) is lost: no sign of life comes from it" in told


@pytest.mark.parametrize("key", ["optimizer.learning_rate", "data.prompts"])
def test_processes_that_are_not_made_from_the_same_are_refused(folder: Path, key: str) -> None:
    other = folder / "other.txt"
    other.write_text("a cat\na dog\na crow\n")
    value = "0.5" if key == "optimizer.learning_rate" else str(other)
    run = Processes(folder, fails, apart=[f"{key}={value}"])
    assert run.ended() == [2, 2]
    [told] = run.told()
    what = f"{key} is 0.5, on process 0 0.0001" if key == "optimizer.learning_rate" else f"the content of {key} is "
    assert f"process 1 of 2 is not like the first: {what}" in told
    assert not (folder / "runs" / "run").exists()
