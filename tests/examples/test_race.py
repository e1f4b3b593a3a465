"""The race: contestants take turns, what they tell becomes a table, and who cannot start is told in a line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from examples.benchmarks.race import run as race

FAKE = """
import json, sys
task = json.loads(sys.stdin.readline())
print(json.dumps({"torch": "none"}), flush=True)
right = 0.25
for word in map(str.strip, sys.stdin):
    if word == "iterate":
        right += GAIN
        print(json.dumps({"seconds": SECONDS, "cpu": 1.5, "reward": task["prompts"]}), flush=True)
    else:
        print(json.dumps({"strict": right}), flush=True)
"""


def fake(name: str, folder: Path, seconds: float, gain: float) -> race.Racer:
    """Start a contestant that takes so many seconds an iteration, as it says, and gains so much."""
    code = FAKE.replace("SECONDS", str(seconds)).replace("GAIN", str(gain))
    return race.Racer.started(name, [sys.executable, "-c", code], race.task_of([]), folder)


def test_they_take_turns_until_all_have_gained_enough(tmp_path: Path) -> None:
    racers = [fake("slow", tmp_path, 2.0, 0.03), fake("quick one", tmp_path, 0.5, 0.05)]
    race.race(racers, iterations=20, every=2, points=10)
    for racer in racers:
        racer.end()
    assert [len(racer.seconds) for racer in racers] == [4, 4]  # three points an iteration, and the first is not counted
    assert racers[0].reached(10) == 8.0
    assert racers[1].reached(10) == 1.0
    table = race.lines(racers, 10)
    assert table[2] == "| slow | 2.000 | 1.00 | 1.500 | 25.0% | 8 |"
    assert table[3] == "| quick one | 0.500 | 0.25 | 1.500 | 25.0% | 1 |"


def test_who_does_not_come_there_is_told_how_far_it_came(tmp_path: Path) -> None:
    racer = fake("still", tmp_path, 1.0, 0.0)
    race.race([racer], iterations=3, every=3, points=10)
    racer.end()
    assert race.lines([racer], 10)[2] == "| still | 1.000 | 1.00 | 1.500 | 25.0% | +0.0 after 3 s |"


def test_one_that_breaks_down_is_named_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=re.escape("broken has ended: ModuleNotFoundError: No module named 'nowhere'")):
        race.Racer.started("broken", [sys.executable, "-c", "import nowhere"], race.task_of([]), tmp_path)


def test_a_task_has_what_it_has() -> None:
    assert race.task_of(["steps=4", "learning_rate=1e-3"])["steps"] == 4
    assert json.loads(json.dumps(race.task_of([])))["targets"][0] == "to_q"
    with pytest.raises(SystemExit, match="colour=red: a task has pipeline, "):
        race.task_of(["colour=red"])


def test_a_checkout_without_an_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--flow-factory: .* has no environment of its own"):
        race.main(["--flow-factory", str(tmp_path), "--folder", str(tmp_path / "race")])
