"""PartiPrompts: 1,632 prompts of twelve categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from alignment.errors import DataError
from evals.suites.base import Item, LocalCopy, Suite, table


@dataclass(frozen=True)
class PartiPrompts(Suite, LocalCopy):
    """Prompts by category or by what is hard about them.

    Attributes:
        folder: Where `PartiPrompts.tsv` is.
        by: What a category is: the file's "Category" or its "Challenge".

    Source: Parti (arXiv 2206.10789).
    """

    folder: str
    by: Literal["Category", "Challenge"] = "Category"

    licence: ClassVar[str] = "Apache-2.0"
    place: ClassVar[str] = "github.com/google-research/parti"
    scored: ClassVar[str] = "people"

    def items(self) -> Sequence[Item]:
        """Return the prompts in the file's order. Quotation marks in it are part of the prompts."""
        path, text = self.text(self.folder, "PartiPrompts.tsv")
        rows = table(path, text, "\t", quoted=False)
        if not {"Prompt", self.by} <= rows[0].keys():
            raise DataError(f"{path}: expected columns Prompt and {self.by}, got {', '.join(map(str, rows[0]))}")
        return [Item(row["Prompt"], row[self.by] or "") for row in rows]
