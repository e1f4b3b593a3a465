"""A process that is killed, whichever and whenever, costs a run of several nothing but time."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.support.runs import brightness, left_by, prepared
from tests.support.several import Processes

KILLS = 50
# Seconds, about those of a run at first. What ended unharmed was quicker, and the next moment is drawn sooner.
LASTS = 8.0
LOST, NOT_MET = 7, 3  # the exit codes of those that are left: once they have met, and before


@pytest.mark.long
@pytest.mark.multi
@pytest.mark.parametrize(("size", "shard"), [(2, 1), (2, 2), (4, 2)])
def test_fifty_kills_change_nothing(size: int, shard: int, flux_folder: Path, tmp_path: Path) -> None:
    """Kill at moments spread over the time that a run takes; what is killed goes on until it is whole."""
    folder = prepared(tmp_path / "work", flux_folder)
    words = (f"source.prompts={size}", f"parallel.shard={shard}", "output.save_every=1", "timeout=20")
    assert Processes(folder, brightness, *words, "name=straight", size=size).ended() == [0] * size
    straight = left_by(folder / "runs" / "straight")
    draw, name, killed, lasts = random.Random(0), 0, 0, LASTS
    while killed < KILLS:
        run = Processes(folder, brightness, *words, f"name=run-{name}", "--resume", "auto", size=size)
        victim = draw.randrange(size)
        run.running[victim].join(draw.uniform(0, lasts))
        run.running[victim].kill()
        codes = run.ended()
        told = run.told()
        met = not any("could not connect to the others" in line for line in told)
        assert set(codes) <= {0, LOST if met else NOT_MET, -signal.SIGKILL}, (codes, told)
        for rank in range(size):
            (folder / f"log{rank}").unlink()
        hit = codes[victim] == -signal.SIGKILL
        killed += hit
        lasts *= 1.1 if hit else 0.9  # so that half of the runs are hit, early and late alike
        if codes == [0] * size:
            assert left_by(folder / "runs" / f"run-{name}") == straight
            name += 1
    assert (
        Processes(folder, brightness, *words, f"name=run-{name}", "--resume", "auto", size=size).ended() == [0] * size
    )
    assert left_by(folder / "runs" / f"run-{name}") == straight
