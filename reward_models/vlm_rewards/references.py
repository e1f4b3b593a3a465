"""Reference pictures of the user's, by prompt."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from reward_models.loading.by_prompt import read_by_prompt


@cache
def read_references(file: str) -> dict[str, Tensor]:
    """Return the pictures `[1, 3, H, W]` in [0, 1] of a `.jsonl` file, by prompt.

    Each line is an object with "prompt" and "media", a path from the folder of the file.

    Raises:
        RewardError: Naming the file and line that cannot be used.
    """

    def read(record: object) -> tuple[str, Tensor]:
        prompt, media = _told(record)
        try:
            return prompt, _picture(Path(file).parent / media)
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from error

    return read_by_prompt("references", file, read, '{"prompt": TEXT, "media": PICTURE}')


def _told(record: object) -> tuple[str, str]:
    values = [record.get(name) for name in ("prompt", "media")] if isinstance(record, dict) else []
    match values:
        case [str() as prompt, str() as media]:
            return prompt, media
        case _:
            raise ValueError("a text is missing")


def _picture(path: Path) -> Tensor:
    with Image.open(path) as opened:
        levels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    return torch.from_numpy(levels.copy()).permute(2, 0, 1)[None].float() / 255
