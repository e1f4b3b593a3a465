"""OneIG-Bench: people, anime, things, text, knowledge, and other languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from alignment.errors import DataError
from evals.suites.base import Item, LocalCopy, Suite, table

_CLASSES = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}


@dataclass(frozen=True)
class OneIG(Suite, LocalCopy):
    """1,120 English prompts of five classes, or 1,320 Chinese ones of six.

    Attributes:
        folder: A copy of its repository, with `OneIG-Bench.csv` and `OneIG-Bench-ZH.csv`.
        language: Of the prompts.

    Source: OneIG-Bench (arXiv 2506.07977).
    """

    folder: str
    language: Literal["en", "zh"] = "en"

    licence: ClassVar[str] = "CC BY-NC 4.0"
    place: ClassVar[str] = "github.com/OneIG-Bench/OneIG-Benchmark"
    pictures: ClassVar[int] = 4
    scored: ClassVar[str] = "a model for each of alignment, text, reasoning, style and diversity"

    def items(self) -> Sequence[Item]:
        """Return the prompts in the file's order; all samples of one are in the 2 x 2 picture of its number."""
        name, column = (
            ("OneIG-Bench.csv", "prompt_en") if self.language == "en" else ("OneIG-Bench-ZH.csv", "prompt_cn")
        )
        path, text = self.text(self.folder, name)
        found: dict[tuple[str, str], Item] = {}
        for number, row in enumerate(table(path, text), start=1):
            place = f"{path}, row {number}"
            missing = [key for key in ("category", "id", column) if not row.get(key)]
            if missing:
                raise DataError(f"{place}: expected columns category, id and {column}; {', '.join(missing)} is empty")
            kind = _CLASSES.get(row["category"])
            if kind is None:
                raise DataError(f"{place}: category {row['category']!r} is none of {', '.join(_CLASSES)}")
            if (kind, row["id"]) in found:
                raise DataError(f"{place}: {row['category']} {row['id']} occurs twice")
            found[kind, row["id"]] = Item(row[column], kind)
        return list(found.values())
