"""Multimodal RewardBench 2, text to image: pairs with an expert's choice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import DataError
from evals.benchmarks.base import Benchmark, Comparison, inside, json_of, wanted
from evals.medium import Medium


@dataclass(frozen=True)
class MultimodalRewardBench2(Benchmark):
    """MMRB2 (`facebookresearch/MMRB2`, pictures from Hugging Face `facebook/MMRB2_image`; CC BY-NC 4.0).

    Layout: `t2i.json` with {"pairs": [{id, prompt_content, response_a, response_b, chosen}]}; contents are lists of
    [type, value] with type "text" or "image".

    Attributes:
        folder: A local copy.
        file: The JSON file in it.
    """

    folder: str
    file: str = "t2i.json"

    def read(self) -> list[Comparison]:
        """Return the pairs; texts of a prompt are joined."""
        folder = Path(self.folder)
        path, found = folder / self.file, []
        for number, record in enumerate(_pairs(path), start=1):
            place = f"{path}, pair {number}"
            prompt, chosen = wanted(record, "prompt_content", place, list), wanted(record, "chosen", place, str)
            a, b = (wanted(record, key, place, dict) for key in ("response_a", "response_b"))
            if chosen not in ("A", "B"):
                raise DataError(f"{place}: chosen is {chosen!r}, expected A or B")
            text = " ".join(_of_kind("text", prompt, place))
            one, other = (_picture(response, folder, place) for response in (a, b))
            found.append(Comparison(text, one, other, 1 if chosen == "A" else -1, unit=str(record.get("id", number))))
        return found


def _pairs(path: Path) -> list[dict[str, Any]]:
    found = json_of(path)
    listed = found.get("pairs") if isinstance(found, dict) else None
    if isinstance(listed, list) and all(isinstance(pair, dict) for pair in listed):
        return listed
    raise DataError(f'{path} should hold an object with a list of objects under "pairs"')


def _of_kind(kind: str, content: list[Any], place: str) -> list[str]:
    """Return the values of one kind in a list of [kind, value]."""
    if not all(isinstance(piece, list) and len(piece) == 2 and isinstance(piece[1], str) for piece in content):
        raise DataError(f"{place}: contents are lists of [type, value], got {content!r:.80}")
    return [value for named, value in content if named == kind]


def _picture(response: dict[str, Any], folder: Path, place: str) -> Medium:
    names = _of_kind("image", wanted(response, "response_content", place, list), place)
    if len(names) != 1:
        raise DataError(f"{place}: a response should hold one picture, this one holds {len(names)}")
    return inside(folder, names[0])
