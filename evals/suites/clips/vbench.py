"""VBench: prompts for clips, by what is looked at in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from evals.benchmarks.base import json_records, wanted
from evals.suites.base import Item, LocalCopy, Suite, called


@dataclass(frozen=True)
class VBench(Suite, LocalCopy):
    """944 prompts, each with the dimensions that are judged on it; the first of them is its category.

    Attributes:
        folder: Where `VBench_full_info.json` is, or a copy of its repository.
        dimensions: Those whose prompts are used; none for all.

    Source: VBench (arXiv 2311.17982).
    """

    folder: str
    dimensions: tuple[str, ...] = ()

    licence: ClassVar[str] = "Apache-2.0"
    place: ClassVar[str] = "github.com/Vchitect/VBench, vbench/VBench_full_info.json"
    pictures: ClassVar[int] = 5
    scored: ClassVar[str] = "a model for each of 16 dimensions"

    def items(self) -> Sequence[Item]:
        """Return the prompts; a sample is called `PROMPT-0`, as its publishers name files."""
        name = "VBench_full_info.json"
        path, _ = self.text(self.folder, name, f"vbench/{name}")
        found: dict[str, Item] = {}
        for number, record in enumerate(json_records(Path(path)), start=1):
            place = f"{path}, record {number}"
            prompt, looked = wanted(record, "prompt_en", place, str), wanted(record, "dimension", place, list)
            chosen = [one for one in looked if not self.dimensions or one in self.dimensions]
            if chosen:
                found.setdefault(prompt, Item(prompt, str(chosen[0]), (f"{called(place, prompt)}-{{k}}",)))
        return list(found.values())
