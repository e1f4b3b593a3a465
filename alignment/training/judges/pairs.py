"""Preference pairs on disk, for training a judge: of two pictures for one prompt, which people preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alignment.data.media import Clip, Picture, find_medium
from alignment.data.random_streams import Draw
from alignment.errors import DataError
from reward_models.base import RewardError
from reward_models.loading.strict_json import parse_json
from reward_models.loading.whole_files import read_lines
from reward_models.vlm_rewards.questions import check_prompt

_TOLD = 5
"""Lines that a message names."""


@dataclass(frozen=True)
class Pair:
    """Two pictures, or two clips, for one prompt.

    Attributes:
        prompt: The text.
        chosen: The one that was preferred.
        rejected: The other.
        reasons: What to think before the verdict when the chosen one is asked about (or stands first), and when the
            rejected one is; None where the file has none.
    """

    prompt: str
    chosen: Picture | Clip
    rejected: Picture | Clip
    reasons: tuple[str, str] | None = None


def read_pairs(path: str, *, reasoned: bool = False) -> tuple[Pair, ...]:
    """Read a `.jsonl` file: an object with "prompt", "chosen" and "rejected" per line, media beside the file.

    Args:
        path: The file.
        reasoned: Whether each line needs "reason" (for the chosen one) and "reason_reversed" too.

    Raises:
        DataError: Naming the file and every line that cannot be used.
    """
    file = Path(path)
    try:
        lines = read_lines(file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    pairs: list[Pair] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            pairs.append(_pair(file.parent, line, reasoned))
        except (DataError, RewardError) as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = f" (and {len(problems) - _TOLD} more)" if len(problems) > _TOLD else ""
        raise DataError(f"{path}: " + "; ".join(problems[:_TOLD]) + more)
    if not pairs:
        raise DataError(f"{path} is empty; it should hold one pair per line")
    return tuple(pairs)


def _pair(folder: Path, line: str, reasoned: bool) -> Pair:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"not JSON ({error})") from error
    texts = ("prompt", "chosen", "rejected", *(("reason", "reason_reversed") if reasoned else ()))
    if not isinstance(record, Mapping) or not all(isinstance(record.get(name), str) for name in texts):
        raise DataError(f"not an object with texts under {', '.join(texts)}")
    check_prompt(record["prompt"])
    chosen, rejected = (find_medium(folder, record[name]) for name in ("chosen", "rejected"))
    if isinstance(chosen, Clip) != isinstance(rejected, Clip):
        raise DataError(f"{record['chosen']} and {record['rejected']} are a picture and a clip; compare like with like")
    if chosen.digest == rejected.digest:
        raise DataError(f"{record['chosen']} and {record['rejected']} are the same file: nothing was preferred")
    return Pair(record["prompt"], chosen, rejected, (record["reason"], record["reason_reversed"]) if reasoned else None)


def pairs_of_step(pairs: Sequence[Pair], step: int, count: int, draw: Draw) -> list[Pair]:
    """Return the pairs of a step: every pair once in a random order, then again in another one."""
    positions = range(step * count, (step + 1) * count)
    epochs = {position // len(pairs) for position in positions}
    orders = {e: torch.randperm(len(pairs), generator=draw.generator("pairs", e)).tolist() for e in epochs}
    return [pairs[orders[position // len(pairs)][position % len(pairs)]] for position in positions]


def pixels_of(medium: Picture | Clip) -> Tensor:
    """Return a picture or clip as `[F, 3, H, W]` in [0, 1]; F = 1 is a picture."""
    frames = medium.open() if isinstance(medium, Clip) else [medium.open()]
    return torch.from_numpy(np.stack([np.array(frame) for frame in frames])).permute(0, 3, 1, 2).float() / 255
