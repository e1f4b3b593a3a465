"""Kill a save at each of its file-system calls; run by test_atomic.py in a process of its own, which may fork freely.

Usage: python -m tests.faults.kill_at_each_call FOLDER SITUATION; writes FOLDER/told.jsonl, one JSON object a kill.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from alignment.checkpoints.checkpoint import Checkpoints

# What the interpreter reports of itself; writing and syncing it does not report, so those are wrapped.
AUDITED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def weights(step: int, folder: Path) -> None:
    """Write a checkpoint of `step` by the calls a trainer would make."""
    save_file({"w": np.full(8, step, dtype=np.float32)}, folder / "weights.safetensors")
    (folder / "state").mkdir()
    with (folder / "state" / "progress.json").open("w") as file:
        file.write(json.dumps({"step": step}))


def save(folder: Path, step: int) -> None:
    """Save `step`, keeping one."""
    Checkpoints(folder, keep=1).save(step, lambda target: weights(step, target))


def killed_at(call: int, folder: Path, step: int) -> bool:
    """Save `step` in a child that dies at the given call; return whether it got that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def pass_or_die(*_: object) -> None:
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)

        def half_written(descriptor: int, content: bytes) -> int:
            real_write(descriptor, bytes(content)[: len(content) // 2])
            pass_or_die()
            return len(content) // 2 + real_write(descriptor, bytes(content)[len(content) // 2 :])

        def synced(descriptor: int) -> None:
            pass_or_die()
            real_sync(descriptor)

        real_write, real_sync = os.write, os.fsync
        os.write, os.fsync = half_written, synced
        sys.addaudithook(lambda event, _: pass_or_die() if event in AUDITED else None)
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.begin(step, lambda target: weights(step, target))  # what is not written yet is so in the background
        checkpoints.settle()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"the save failed by itself: status {status}")
    return os.WIFSIGNALED(status)


def main() -> None:
    """Kill at call 1, 2, ... until a save gets through, and report what each restart finds."""
    parent, situation = Path(sys.argv[1]), sys.argv[2]
    step = {"first": 10, "next": 10, "same step": 5}[situation]
    warnings.simplefilter("error")
    call, killed = 0, True
    while killed:
        call += 1
        folder = parent / str(call)
        folder.mkdir()
        if situation != "first":
            save(folder, 5)
            shutil.copytree(folder / "checkpoint-5", folder / "checkpoint-9.tmp-00000000")
        killed = killed_at(call, folder, step)
        restarted = Checkpoints(folder, keep=1)
        finished = [
            path for path in folder.iterdir() if path.name.startswith("checkpoint-") and ".tmp-" not in path.name
        ]
        found = json.loads((restarted.find() / "state" / "progress.json").read_text())["step"] if finished else None
        save(folder, 15)
        left = sorted(path.name for path in folder.iterdir())
        with (parent / "told.jsonl").open("a") as told:
            told.write(json.dumps({"call": call, "killed": killed, "found": found, "left": left}) + "\n")


if __name__ == "__main__":
    main()
