"""Write preference pairs of shapes: the picture of a caption is preferred to one of which a word is wrong."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from evals.drawing import draw, sample_scene
from reward_models.verifiers.scenes import COLOURS, COUNTS, SHAPES, Group, Scene


def main() -> None:
    """Write `train.jsonl` and `held_out.jsonl` with their pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=800, help="pairs whose captions are of the train split")
    parser.add_argument("--held-out", type=int, default=300, help="pairs whose captions are of the test split")
    asked = parser.parse_args()
    write_pairs(asked.folder, "train", "train", asked.train, seed=0)
    write_pairs(asked.folder, "held_out", "test", asked.held_out, seed=1)


def write_pairs(folder: Path, name: str, split: str, count: int, *, seed: int) -> None:
    """Write `count` pairs with captions of a split into `folder/name.jsonl`, pictures beside it."""
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        scene = sample_scene(rng, "single", split)
        record = {"prompt": scene.caption}
        for side, drawn in (("chosen", scene), ("rejected", spoiled(scene, rng))):
            record[side] = f"{name}/{number:04}_{side}.png"
            Image.fromarray(draw(drawn, rng)).save(folder / record[side])
        lines.append(json.dumps(record))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def spoiled(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a scene that differs in one of count, colour and shape, any with the same chance."""
    group = scene.groups[0]
    choices: tuple[list[Group], ...] = (
        [replace(group, count=count + 1) for count in range(len(COUNTS)) if count + 1 != group.count],
        [replace(group, colour=colour) for colour in COLOURS if colour != group.colour],
        [replace(group, shape=shape) for shape in SHAPES if shape != group.shape],
    )
    wrong = choices[int(rng.integers(len(choices)))]
    return Scene((wrong[int(rng.integers(len(wrong)))],))


if __name__ == "__main__":
    main()
