"""WISE: prompts that take knowledge of the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignment.errors import DataError
from evals.benchmarks.base import json_records, wanted
from evals.suites.base import Item, LocalCopy, Suite


@dataclass(frozen=True)
class WISE(Suite, LocalCopy):
    """1,000 prompts of culture, time, space, biology, physics and chemistry.

    Attributes:
        folder: Where the `.json` files of prompts are (`data`, or `data_verified`).

    Source: WISE (arXiv 2503.07265).
    """

    folder: str

    licence: ClassVar[str] = "not stated"
    place: ClassVar[str] = "github.com/PKU-YuanGroup/WISE"
    scored: ClassVar[str] = "a vision-language model that is told what was meant"

    def items(self) -> Sequence[Item]:
        """Return the prompts by their numbers; the picture of prompt 7 is called `7`."""
        files = [path for path in sorted(Path(self.folder).glob("*.json")) if path.stem != "merge"]
        if not files:
            raise self.lacking(self.folder, "*.json")
        found: dict[int, Item] = {}
        for path in files:
            for number, record in enumerate(json_records(path), start=1):
                place = f"{path}, record {number}"
                prompt, own = wanted(record, "Prompt", place, str), wanted(record, "prompt_id", place, int)
                if own in found:
                    raise DataError(f"{place}: prompt_id {own} occurs twice")
                found[own] = Item(prompt, str(record.get("Category", "")), (str(own),))
        return [found[own] for own in sorted(found)]
