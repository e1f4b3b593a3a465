"""Reference pictures of the user's, by prompt."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from reward_models.base import RewardError
from reward_models.loading.whole_files import read_whole


@cache
def read_references(file: str) -> dict[str, Tensor]:
    """Return the pictures `[1, 3, H, W]` in [0, 1] of a `.jsonl` file, by prompt.

    Each line is an object with "prompt" and "media", a path from the folder of the file.

    Raises:
        RewardError: Naming the file and line that cannot be used.
    """
    try:
        lines = read_whole(file).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"references: {file} cannot be read: {error}") from error
    found: dict[str, Tensor] = {}
    for number, line in enumerate(lines, start=1):
        try:
            prompt, media = _told(json.loads(line))
            found[prompt] = _picture(Path(file).parent / media)
        except (ValueError, OSError, Image.DecompressionBombError) as error:
            raise RewardError(
                f'references: {file}:{number}: {error}; a line is {{"prompt": TEXT, "media": PICTURE}}'
            ) from error
    return found


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
