"""Kill training at named points and resume it; run by test_resume.py in a process of its own, which may fork freely.

Usage: python -m tests.faults.kill_runs FOLDER KIND POINT ...; writes FOLDER/told.json: what each run left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import matplotlib.pyplot
import peft
import torch
from diffusers import DiffusionPipeline

import alignment.training.session
from tests.support import runs
from tests.support.runs import left_by, train

# (file, function, moment, which time), counted from a call of the reward that comes after checkpoint 2.
POINTS = {
    "reward": ("credited.py", "score", "return", 1),
    "between two backward passes": ("runtime.py", "learn", "return", 2),
    "behind the optimiser": ("runtime.py", "update", "return", 1),
    "between the averaged copies": ("weights.py", "refresh", "return", 1),
    "step told, not saved": ("record.py", "step", "return", 2),
    "in the middle of saving": ("state.py", "write_state", "return", 1),
    "saved, not pointed at": ("checkpoint.py", "_commit", "return", 1),
}

CALL = {"grpo": 4, "nft": 4, "scouts": 8}  # where scouts are scored, too, and a step ahead of what is learned


def trap(file: str, function: str, moment: str, time: int) -> Callable[[], None]:
    """Let this process die by SIGKILL at a moment of its own code, in any thread, once the result is called."""
    seen, armed = 0, False

    def arm() -> None:
        nonlocal armed
        for thread in threading.enumerate():  # the save before is over: where a run is resumed is not left to chance
            if thread.name.startswith("saving"):
                thread.join()
        armed = True

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal seen
        code = frame.f_code
        if armed and event == moment and code.co_name == function and code.co_filename.endswith(f"/{file}"):
            seen += 1
            if seen == time:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)
    threading.setprofile(watch)
    return arm


# Imported here so that no child has to: they, and what loading a pipeline imports, take longer than a run.
IMPORTED = (alignment.training.session, matplotlib.pyplot, peft)


def in_a_child(folder: Path, kind: str, *more: str, point: str | None = None) -> int:
    """Train in a forked process and return how it ended: an exit code, or minus a signal."""
    child = os.fork()
    if child == 0:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if point is not None:
            runs.at_call[CALL[kind]] = trap(*POINTS[point])
        os._exit(train(folder, kind, *more))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Run straight; then, for each point, run until it kills, and resume."""
    folder, kind, points = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.set_num_threads(1)
    DiffusionPipeline.from_pretrained(folder / "pipeline")
    straight = in_a_child(folder, kind, "name=straight")
    assert straight == 0, (folder / "log.txt").read_text()
    found = {}
    for number, point in enumerate(points):
        name = f"name=killed-{number}"
        ended = in_a_child(folder, kind, name, point=point)
        resumed = in_a_child(folder, kind, name, "--resume", "latest")
        left = left_by(folder / "runs" / f"killed-{number}") if resumed == 0 else (folder / "log.txt").read_text()
        found[point] = {"ended": ended, "resumed": resumed, "left": left}
    (folder / "told.json").write_text(json.dumps({"straight": left_by(folder / "runs" / "straight"), "killed": found}))


if __name__ == "__main__":
    main()
