"""Draw the preferences that the tiny FLUX learns from: `python -m examples.preferences.build assets/preferences`.

`pairs.jsonl` has a picture of each training caption beside one of which a word is wrong; `labelled.jsonl` has the same
pictures one by one, with a label. Winners alone are the column `chosen` of the pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from evals.drawing import draw
from examples.tiny_judge.pairs import spoiled
from reward_models.verifiers.scenes import parse, single_captions


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=4, help="pairs of each of the 36 training captions")
    asked = parser.parse_args()
    write(asked.folder, asked.each, seed=0)


def write(folder: Path, each: int, seed: int) -> None:
    """Write `each` pairs of every training caption into `folder`."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pairs: list[dict[str, object]] = []
    labelled: list[dict[str, object]] = []
    for caption in [caption for caption in single_captions("train") for _ in range(each)]:
        scene = parse(caption)
        record: dict[str, object] = {"prompt": caption}
        for side, drawn in (("chosen", scene), ("rejected", spoiled(scene, rng))):
            record[side] = f"pictures/{len(pairs):03}_{side}.png"
            Image.fromarray(draw(drawn, rng)).save(folder / str(record[side]))
            labelled.append({"prompt": caption, "media": record[side], "label": side == "chosen"})
        pairs.append(record)
    for name, records in (("pairs", pairs), ("labelled", labelled)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
