"""Media that are scored together: of one shape, in no more memory than a few of them take, and each as if alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from alignment.data.batches import Prompt
from alignment.data.media import find_picture
from evals import scoring
from evals.medium import Medium
from evals.scoring import BatchScorer, Request
from reward_models.measures.colour import Colour
from tests.support.clips import written
from tests.support.redder import ALONE, Redder

CPU = torch.device("cpu")
ROUNDING = 1e-6  # float32 means over other numbers of rows


def media(folder: Path, *sides: int) -> list[Medium]:
    files = [folder / f"{number}.png" for number in range(len(sides))]
    for number, (file, side) in enumerate(zip(files, sides, strict=True)):
        Image.new("RGB", (side, 8), (20 * number, 0, 0)).save(file)
    return [Medium.file(file) for file in files]


def test_batches_are_bounded_by_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = media(tmp_path, 8, 10, 9, 8, 9, 8, 40)
    requests = [Request("", medium) for medium in shown]
    apart = [BatchScorer(Colour(), CPU, batch_size=1).scores([request])[0] for request in requests]
    monkeypatch.setattr(scoring, "PIXELS_AT_ONCE", 3 * 64)
    scorer = BatchScorer(Colour(), CPU)
    steps: list[int] = []
    assert scorer.scores(requests, done=steps.append) == pytest.approx(apart, abs=ROUNDING)
    # The third and the fourth are too much to wait: the most pixels go. Two of 9 x 8 fill a call, 40 x 8 does alone.
    assert steps == [0, 1, 2, 2, 1, 1]


def test_what_several_look_at_is_decoded_once(tmp_path: Path) -> None:
    (first,) = media(tmp_path, 8)
    copy = Medium("copy.png", content=first.read())
    assert copy.levels() is first.levels()
    Image.new("RGB", (6000, 4000)).save(tmp_path / "large.png")
    for name in ("large.png", "0.png"):  # what is larger than all that is kept is not, and displaces nothing
        assert (Medium.file(tmp_path / name).levels() is Medium.file(tmp_path / name).levels()) is (name == "0.png")
    assert copy.levels() is first.levels()


def test_what_is_done_to_frames_is_done_to_each(tmp_path: Path) -> None:
    shown = media(tmp_path, 8, 8, 8)
    requests = [Request("", medium) for medium in shown]
    scores = BatchScorer(Colour(), CPU).scores(requests, alter=lambda frames: frames / 2, name="half")
    assert scores == pytest.approx([20 * number / 255 / 2 for number in range(3)], abs=ROUNDING)


def test_a_reward_sees_what_a_picture_was_made_from(tmp_path: Path) -> None:
    """Pictures with a source and without, of one shape, are scored as they are alone."""
    shown = media(tmp_path, 8, 8, 8, 8)
    Image.new("RGB", (4, 16), (10, 0, 0)).save(tmp_path / "before.png")
    before = Prompt("redder", {"image": find_picture(tmp_path, "before.png")})
    asked = [
        Request(prompt, medium) for prompt, medium in zip((before, "a thing", before, "a thing"), shown, strict=True)
    ]
    scores = BatchScorer(Redder(), CPU).scores(asked)
    assert scores == pytest.approx([-10 / 255, ALONE, 30 / 255, ALONE], abs=ROUNDING)


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from evals import scoring
from evals.medium import Medium
from reward_models.measures.colour import Colour
scoring.PIXELS_AT_ONCE = 10_000_000
requests = [scoring.Request("", Medium.file(path)) for path in sorted(Path(sys.argv[1]).iterdir())]
scorer = scoring.BatchScorer(Colour(), torch.device("cpu"))
scorer.scores(requests[:1], alter=torch.clone, name="first")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scorer.scores(requests)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
PEAK = 150_000
"""kB above what one clip takes, 4.9 million pixels of 12 bytes and its decoder: 10 million as levels are 30,000."""


def test_clips_of_many_shapes_do_not_wait_in_memory(tmp_path: Path) -> None:
    for number in range(9):
        written(tmp_path / f"{number}.avi", [(640 - 16 * number, 480)] * 16)
    ran = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < PEAK
