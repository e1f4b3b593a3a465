"""A save that goes on in the background keeps every promise of one that does not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alignment.checkpoints.checkpoint import Checkpoints
from alignment.errors import EnvironmentProblem
from tests.alignment.checkpoints.test_checkpoint import names, saved, weights

ROOT = Path(__file__).parents[3]


def hold_syncing(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let nothing reach the disk before the event that is returned."""
    go, real = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (go.wait(), real(descriptor)))
    return go


def test_a_save_in_the_background_is_there_when_it_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)
    go, values = hold_syncing(monkeypatch), np.zeros(4, dtype=np.float32)
    checkpoints.begin(2, lambda folder: save_file({"w": values}, folder / "weights.safetensors"))
    values += 1  # what is saved is what there was
    checkpoints.heed()
    assert checkpoints.find().name == "checkpoint-1"
    assert (tmp_path / "latest").read_text() == "checkpoint-1\n"
    go.set()
    checkpoints.settle()
    assert checkpoints.find().name == "checkpoint-2"
    assert not load_file(checkpoints.find() / "weights.safetensors")["w"].any()
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", "latest"}


@pytest.mark.parametrize("following", ["save", "begin", "close"])
def test_what_follows_waits_for_the_save_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, following: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    go, found = hold_syncing(monkeypatch), []
    checkpoints.begin(1, weights(1))

    def look(folder: Path) -> None:
        found.append(checkpoints.find().name)
        weights(2)(folder)

    threading.Timer(0.1, go.set).start()
    if following == "close":
        checkpoints.close()
    else:
        getattr(checkpoints, following)(2, look)
        checkpoints.settle()
        assert found == ["checkpoint-1"]
    assert checkpoints.find().name == {"close": "checkpoint-1"}.get(following, "checkpoint-2")


def fails(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_fails_in_the_background_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, says = saved(tmp_path, 1), "step 2 could not be saved: .*No space left.*checkpoint-1 is intact"
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", fails)
        checkpoints.begin(2, weights(2))
        with pytest.raises(EnvironmentProblem, match=says):
            checkpoints.settle()
        assert names(tmp_path) == {"checkpoint-1", "latest"}
        checkpoints.begin(2, weights(2))
        with pytest.raises(EnvironmentProblem, match=says):  # the one before is not passed over
            checkpoints.begin(3, weights(3))
        checkpoints.begin(2, weights(2))
        with pytest.warns(UserWarning, match=says):  # another error ends the run
            checkpoints.close()
    checkpoints.heed()
    checkpoints.begin(3, weights(3))
    checkpoints.settle()
    assert checkpoints.find().name == "checkpoint-3"


def test_an_interpreter_that_ends_waits_for_a_save(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; from pathlib import Path\n"
        "from tests.alignment.checkpoints.test_checkpoint import weights\n"
        "from alignment.checkpoints.checkpoint import Checkpoints\n"
        "real = os.fsync; os.fsync = lambda descriptor: (time.sleep(0.1), real(descriptor))\n"
        "Checkpoints(Path(sys.argv[1]), 1).begin(2, weights(2))\n"
    )
    command = [sys.executable, "-c", script, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Checkpoints(tmp_path, 1).find().name == "checkpoint-2"
