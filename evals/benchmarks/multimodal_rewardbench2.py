"""Multimodal RewardBench 2, text to image: pairs with an expert's choice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import DataError
from evals.benchmarks.base import Benchmark, Comparison, inside, json_records, wanted
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
            prompt, a, b, chosen = (
                wanted(record, key, path, number) for key in ("prompt_content", "response_a", "response_b", "chosen")
            )
            if chosen not in ("A", "B"):
                raise DataError(f"{path}, pair {number}: chosen is {chosen!r}, expected A or B")
            text = " ".join(value for kind, value in prompt if kind == "text")
            one, other = (_picture(response, folder, path, number) for response in (a, b))
            found.append(Comparison(text, one, other, 1 if chosen == "A" else -1, unit=str(record.get("id", number))))
        return found


def _pairs(path: Path) -> list[dict[str, Any]]:
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return json_records(path)  # which says what is wrong
    if isinstance(found, dict) and isinstance(found.get("pairs"), list):
        return found["pairs"]
    raise DataError(f'{path} should hold an object with a list under "pairs"')


def _picture(response: dict[str, Any], folder: Path, path: Path, number: int) -> Medium:
    names = [value for kind, value in wanted(response, "response_content", path, number) if kind == "image"]
    if len(names) != 1:
        raise DataError(f"{path}, pair {number}: a response should hold one picture, this one holds {len(names)}")
    return inside(folder, names[0])
