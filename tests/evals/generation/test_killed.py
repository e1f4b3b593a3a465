"""An evaluation that is killed by the signal that nobody can catch, at any moment, is the one that was not."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.support.forked import start
from tests.support.tiny import FLUX_CALL
from tests.support.trained import trained

KILLS, EACH = 50, 5
"""Of all evaluations, and of one at most."""
PAUSE, AFTER = 0.02, 0.3
"""Seconds between two looks at what is there; and how long it may go on, at most, when there is enough of it."""
CALL = [f"{name}={value}" for name, value in FLUX_CALL.items()]


def outcome(folder: Path) -> dict[str, bytes]:
    """Return what it made, without where it stands."""
    files = [folder / "eval.json", *sorted((folder / "samples").rglob("*.*"))]
    told = {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.startswith(".")}
    assert json.loads(told["eval.json"])["suites"]
    return told


def files(folder: Path) -> int:
    """Return how many files there are, half-written ones too."""
    return sum(1 for _ in folder.rglob("*"))


@pytest.mark.long
def test_killed_at_fifty_moments_it_comes_to_the_same(tmp_path: Path) -> None:
    """Each time it is started again with the same words; after a few kills it may end, and another one is begun."""
    one, draw, log = trained(tmp_path, "flux", lora=True), random.Random(0), tmp_path / "log"
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cow", encoding="utf-8")
    words = [
        "eval", str(one.base), str(one.checkpoint), "--on", "prompts", f"file={tmp_path / 'prompts.txt'}",
        "--pictures", "4", "--batch-size", "2", "--reward", "colour", "--reward", "sharpness", "--call", *CALL,
        "--only", "generate", "score", "compare", "--output",
    ]  # fmt: skip

    def run(folder: str, least: int, delay: float | None) -> bool:
        """Run it, kill it when there are so many files and a little later; return whether it was through before."""
        process = start("alignment", [*words, str(tmp_path / folder)], os.environ, log)
        while process.is_alive() and files(tmp_path / folder) < least:
            process.join(PAUSE)
        process.join(delay)
        if through := not process.is_alive():
            assert process.exitcode == 0, log.read_text(encoding="utf-8")
        process.kill()
        process.join()
        return through

    assert run("whole", 0, None)
    whole, all_files = outcome(tmp_path / "whole"), files(tmp_path / "whole")
    kills, number = 0, 0
    while kills < KILLS:
        folder = f"killed {(number := number + 1)}"
        for moment in sorted(draw.randint(0, all_files) for _ in range(EACH)):
            if run(folder, moment, draw.uniform(0, AFTER)):
                break
            kills += 1
        assert run(folder, 0, None)
        assert outcome(tmp_path / folder) == whole
