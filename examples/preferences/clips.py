"""Draw the clips that the tiny video pipeline learns from: `python -m examples.preferences.clips assets/preferences`.

`clips.jsonl` has a clip of each training caption, told truly, beside one of the same object that moves another way.
Winners alone are its column `chosen`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from alignment.reports.pictures import encode_clip
from examples.tiny_video.draw_clips import draw
from reward_models.verifiers.movements import DIRECTIONS, Movement, movements

FPS = 8.0


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=2, help="pairs of each of the 48 training captions")
    asked = parser.parse_args()
    write(asked.folder, asked.each, seed=0)


def write(folder: Path, each: int, seed: int) -> None:
    """Write `each` pairs of every training caption into `folder`."""
    rng = np.random.default_rng(seed)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, str]] = []
    for movement in [movement for movement in movements("train") for _ in range(each)]:
        record = {"prompt": movement.caption}
        for side, drawn in (("chosen", movement), ("rejected", astray(movement, rng))):
            record[side] = f"clips/{len(records):03}_{side}.mp4"
            frames = [Image.fromarray(frame) for frame in draw(drawn, rng)]
            (folder / record[side]).write_bytes(encode_clip(frames, FPS))
        records.append(record)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "clips.jsonl").write_text(lines, encoding="utf-8")


def astray(movement: Movement, rng: np.random.Generator) -> Movement:
    """Return the same object on another way."""
    others = [way for way in DIRECTIONS if way != movement.direction]
    return replace(movement, direction=others[int(rng.integers(len(others)))])


if __name__ == "__main__":
    main()
