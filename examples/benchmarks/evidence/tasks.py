"""Make the data of the evidence tasks: `python -m examples.benchmarks.evidence.tasks runs/evidence/data`.

All of it is drawn, so that it is exact, and the same everywhere.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from evals.drawing import draw
from reward_models.verifiers.scenes import BACKGROUND, SIDE, parse, single_captions

CROWD = "three "
"""Captions of crowded pictures begin so."""
WINNERS = 48
"""Pictures to imitate: a small set."""
_LIT = 40.0
"""Levels from the background from which a pixel belongs to an object."""


def captions(folder: Path) -> None:
    """Write the captions of three objects of each split."""
    for split in ("train", "dev", "test"):
        crowded = [caption for caption in single_captions(split) if caption.startswith(CROWD)]
        (folder / f"crowded_{split}.txt").write_text("".join(f"{caption}\n" for caption in crowded), encoding="utf-8")


def winners(folder: Path, rng: np.random.Generator) -> None:
    """Write pictures whose objects all lie in the lower half, as few of the base's do: a style of its own."""
    (folder / "winners").mkdir(exist_ok=True)
    names = [caption for caption in single_captions("train") if not caption.startswith(CROWD)]
    records = []
    for number in range(WINNERS):
        caption = names[number % len(names)]
        picture = draw(parse(caption), rng)
        while lit(picture[: SIDE // 2]):
            picture = draw(parse(caption), rng)
        file = f"winners/{number:03}.png"
        Image.fromarray(picture).save(folder / file)
        records.append({"prompt": caption, "media": file})
    (folder / "winners.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    for split in ("dev", "test"):
        named = [caption for caption in single_captions(split) if not caption.startswith(CROWD)]
        (folder / f"uncrowded_{split}.txt").write_text("".join(f"{n}\n" for n in named), encoding="utf-8")


def lit(pixels: np.ndarray) -> bool:
    """Say whether any object reaches into these pixels."""
    return bool((np.abs(pixels.astype(np.float32) - np.array(BACKGROUND)).max(axis=-1) > _LIT).any())


def write(folder: Path) -> None:
    """Write all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    captions(folder)
    winners(folder, np.random.default_rng(0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
