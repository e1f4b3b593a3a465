"""Prompts in a file of one's own: with any rewards, that is a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.data.prompts import read_prompts
from evals.suites.base import Item, Suite


@dataclass(frozen=True)
class Prompts(Suite):
    """The prompts of a `.txt`, `.jsonl` or `.parquet` file, as a training reads them; say with what they are scored.

    Attributes:
        file: The file. Pictures that its records name belong to the prompts.
    """

    file: str

    def items(self) -> Sequence[Item]:
        """Return the prompts of the file."""
        return [Item(prompt) for prompt in read_prompts(str(Path(self.file))).texts]
