"""GenEval 2: objects, attributes, relations and counts, up to ten of them in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from evals.benchmarks.base import json_records, wanted
from evals.suites.base import Item, LocalCopy, Suite


@dataclass(frozen=True)
class GenEval2(Suite, LocalCopy):
    """800 prompts, in categories by how many statements each makes.

    The reward `soft_tifa` asks a model the questions that the same file has about them.

    Attributes:
        folder: A copy of its repository, with `geneval2_data.jsonl`.

    Source: GenEval 2 (arXiv 2512.16853).
    """

    folder: str

    licence: ClassVar[str] = "CC BY-NC 4.0"
    place: ClassVar[str] = "github.com/facebookresearch/GenEval2"
    scored: ClassVar[str] = (
        "Soft-TIFA: `--reward soft_tifa vlm.type=local vlm.model=Qwen/Qwen3-VL-8B-Instruct "
        "questions=FOLDER/geneval2_data.jsonl`"
    )

    def items(self) -> Sequence[Item]:
        """Return the prompts in the file's order."""
        path, _ = self.text(self.folder, "geneval2_data.jsonl")
        found = []
        for number, record in enumerate(json_records(path), start=1):
            place = f"{path}, line {number}"
            count = wanted(record, "atom_count", place, int)
            found.append(Item(wanted(record, "prompt", place, str), f"{count} statements"))
        return found
