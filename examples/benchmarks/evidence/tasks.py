"""Make the data of the evidence tasks: `python -m examples.benchmarks.evidence.tasks runs/evidence/data`.

All of it is drawn, so that it is exact, and the same everywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evals.drawing import draw, sample_scene
from reward_models.verifiers.scenes import BACKGROUND, SIDE, parse, single_captions

RELATED = {"train": 24, "dev": 8, "test": 12}
"""Captions of two groups in a relation, of each split."""
CROWD = "three "
"""Captions of crowded pictures begin so."""
WINNERS = 48
"""Pictures to imitate: a small set."""
PAIRS = 120
"""Preferences."""
_LIT = 40.0
"""Levels from the background from which a pixel belongs to an object."""


def captions(folder: Path) -> None:
    """Write captions of each split: of one object, of one or two, of three, and of two groups in a relation."""
    rng = np.random.default_rng(2)
    for split, count in RELATED.items():
        related: dict[str, None] = {}
        while len(related) < count:
            related[sample_scene(rng, "relation", split).caption] = None
        named = {
            "alone": [caption for caption in single_captions(split) if caption.startswith("a ")],
            "uncrowded": uncrowded(split),
            "crowded": [caption for caption in single_captions(split) if caption.startswith(CROWD)],
            "related": list(related),
        }
        for name, texts in named.items():
            (folder / f"{name}_{split}.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def uncrowded(split: str) -> list[str]:
    """Return the captions of a split with one or two objects."""
    return [caption for caption in single_captions(split) if not caption.startswith(CROWD)]


def winners(folder: Path, rng: np.random.Generator) -> None:
    """Write pictures whose objects all lie in the lower half, as few of the base's do: a style of its own."""
    names = uncrowded("train")
    records = []
    for number in range(WINNERS):
        caption = names[number % len(names)]
        file = f"winners/{number:03}.png"
        Image.fromarray(lower(caption, rng)).save(folder / file)
        records.append({"prompt": caption, "media": file})
    write_lines(folder / "winners.jsonl", records)


def preferences(folder: Path, rng: np.random.Generator) -> None:
    """Write pairs: objects in the lower half are preferred to objects in the upper half."""
    names = uncrowded("train")
    records = []
    for number in range(PAIRS):
        caption = names[number % len(names)]
        sides = {"chosen": lower(caption, rng), "rejected": lower(caption, rng, upside_down=True)}
        files = {side: f"pairs/{number:03}_{side}.png" for side in sides}
        for side, picture in sides.items():
            Image.fromarray(picture).save(folder / files[side])
        records.append({"prompt": caption, **files})
    write_lines(folder / "pairs.jsonl", records)


def lower(caption: str, rng: np.random.Generator, *, upside_down: bool = False) -> np.ndarray:
    """Return a picture of a caption with all objects in the lower half; or in the upper one."""
    empty = slice(SIDE // 2, None) if upside_down else slice(0, SIDE // 2)
    while lit((picture := draw(parse(caption), rng))[empty]):
        pass
    return picture


def write_lines(file: Path, records: Sequence[Mapping[str, str]]) -> None:
    """Write a record a line."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def lit(pixels: np.ndarray) -> bool:
    """Say whether any object reaches into these pixels."""
    return bool((np.abs(pixels.astype(np.float32) - np.array(BACKGROUND)).max(axis=-1) > _LIT).any())


def write(folder: Path) -> None:
    """Write all of it."""
    for name in ("winners", "pairs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    captions(folder)
    winners(folder, np.random.default_rng(0))
    preferences(folder, np.random.default_rng(1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
