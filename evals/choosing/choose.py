"""Of several pictures for one place, the one that a reward likes best, and what other rewards say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignment.reports.statistics import Interval, difference, interval, is_share
from evals.generation.makers import MANIFEST
from evals.generation.shelf import Row, write

CHOSEN = "chosen"


@dataclass(frozen=True)
class Pick:
    """One place and the picture that it got.

    Attributes:
        item: Number of the prompt.
        picture: Which of the prompt's pictures it is.
        plain: Index of the row that the pipeline alone would have given.
        chosen: Index of the row that was chosen.
        tried: How many there were, scored or not.
    """

    item: int
    picture: int
    plain: int
    chosen: int
    tried: int

    @property
    def name(self) -> str:
        """What its file is called: `00012-0`."""
        return f"{self.item:05d}-{self.picture}"


def choose(rows: Sequence[Row], scores: Sequence[float], pictures: int) -> list[Pick]:
    """Return the best of each place. Sample k is a try of picture k modulo `pictures`; the first of them are plain.

    So more tries leave earlier ones what they were. Of equals the first is taken, and so is the plain one where
    nothing could be scored.

    Args:
        rows: Every candidate.
        scores: Of each; NaN where there is none. The larger the better.
        pictures: Pictures of each prompt that are wanted.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(rows):
        places.setdefault((row.item, row.sample % pictures), []).append(index)
    found = []
    for (item, picture), own in sorted(places.items()):
        own.sort(key=lambda index: rows[index].sample)
        known = [index for index in own if not math.isnan(scores[index])]
        best = max(known, key=lambda index: scores[index]) if known else own[0]
        found.append(Pick(item, picture, own[0], best, len(own)))
    return found


@dataclass(frozen=True)
class Gain:
    """What choosing did to a reward.

    Attributes:
        title: The reward's.
        chooses: Whether it was the one that chose; then a gain says that it was listened to, and no more.
        plain: Of the pictures that the pipeline alone would have given.
        chosen: Of those that were chosen.
        change: The second less the first, picture by picture.
    """

    title: str
    chooses: bool
    plain: Interval
    chosen: Interval
    change: Interval


def gains(
    picks: Sequence[Pick], scores: Mapping[str, np.ndarray], chooser: str | None, known: Collection[str] = ()
) -> list[Gain]:
    """Return what choosing did to every reward, the one that chose first.

    Args:
        picks: What was chosen.
        scores: Of every candidate, by reward.
        chooser: The reward that chose; None where there was nothing to choose from.
        known: Rewards that give 0 or 1 and nothing else.
    """
    prompts = [str(pick.item) for pick in picks]
    found = []
    for title, column in scores.items():
        plain, chosen = (column[[vars(pick)[side] for pick in picks]].tolist() for side in ("plain", "chosen"))
        change = difference(plain, chosen, prompts)
        share = is_share(column, known=title in known)
        before, after = (interval(side, prompts, share=share) for side in (plain, chosen))
        found.append(Gain(title, title == chooser, before, after, change))
    return sorted(found, key=lambda gain: not gain.chooses)


def write_chosen(
    output: Path,
    picks: Sequence[Pick],
    rows: Sequence[Row],
    files: Sequence[Path],
    prompts: Sequence[str],
    scores: Mapping[str, np.ndarray],
) -> list[Path]:
    """Write the chosen pictures and their manifest into `chosen/`, and return their files.

    Such a folder is a subject of `visalign eval`; what was chosen has other noise than what it is compared with, and
    so the manifest has no `seed`. Plain diffusers makes a picture again with
    `generator=torch.Generator("cpu").manual_seed(generator_seed)`.

    Raises:
        EnvironmentProblem: If the disk refuses.
    """
    lines, written = [], []
    for pick in picks:
        source = files[pick.chosen]
        path = output / CHOSEN / f"{pick.name}{source.suffix}"
        write(path, source.read_bytes())
        written.append(path)
        said = {title: _number(column[pick.chosen]) for title, column in scores.items()}
        record = {"prompt": prompts[pick.item], "media": path.name, "generator_seed": rows[pick.chosen].seed}
        lines.append(json.dumps({**record, "of": pick.tried, "scores": said}, ensure_ascii=False) + "\n")
    write(output / CHOSEN / MANIFEST, "".join(lines).encode(errors="replace"))
    kept = {path.name for path in written}
    for path in (output / CHOSEN).glob("[0-9]*-*.*"):  # of an earlier command that asked for more
        if path.name not in kept:
            path.unlink()
    return written


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
