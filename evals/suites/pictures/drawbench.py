"""DrawBench: 200 prompts of eleven categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from alignment.errors import DataError
from evals.suites.base import Item, LocalCopy, Suite, lines, table


@dataclass(frozen=True)
class DrawBench(Suite, LocalCopy):
    """Prompts from a table with Prompts and Category, or a text file with one per line.

    Attributes:
        folder: Where `drawbench.csv`, `DrawBench.csv` or `drawbench.txt` is.

    Source: Imagen (arXiv 2205.11487).
    """

    folder: str

    licence: ClassVar[str] = "unknown"
    place: ClassVar[str] = "the table that the Imagen paper links to"
    scored: ClassVar[str] = "people"

    def items(self) -> Sequence[Item]:
        """Return the prompts, each once: some copies have every prompt several times."""
        path, text = self.text(self.folder, "drawbench.csv", "DrawBench.csv", "drawbench.txt")
        if path.suffix == ".txt":
            return [Item(line) for line in dict.fromkeys(lines(path, text))]
        rows = table(path, text)
        if "Prompts" not in rows[0]:
            raise DataError(f"{path}: expected a column Prompts, got {', '.join(map(str, rows[0]))}")
        return [
            Item(prompt, category) for prompt, category in {r["Prompts"]: r.get("Category", "") for r in rows}.items()
        ]
