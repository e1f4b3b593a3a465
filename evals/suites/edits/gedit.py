"""GEdit-Bench: what people ask of a picture editor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from alignment.data.parquet import read_rows, read_stream
from alignment.errors import DataError
from evals.benchmarks.base import wanted
from evals.suites.base import Item, LocalCopy, Published, Suite, called

_TEXTS = ("task_type", "key", "instruction", "instruction_language")
_BAGEL = "BAGEL, arXiv 2505.14683"


@dataclass(frozen=True)
class GEdit(Suite, LocalCopy):
    """606 edits in English or 606 in Chinese, of eleven tasks, which are categories.

    Attributes:
        folder: A copy of the data set: its Arrow files, or Parquet ones.
        language: Of the instructions.
        original: Which of its pictures is edited: the one that its publishers show the judge, or that as it was found.

    Source: Step1X-Edit (arXiv 2504.17761).
    """

    folder: str
    language: Literal["en", "cn"] = "en"
    original: Literal["input_image", "input_image_raw"] = "input_image"

    licence: ClassVar[str] = "MIT"
    place: ClassVar[str] = "huggingface.co/datasets/stepfun-ai/GEdit-Bench"
    scored: ClassVar[str] = "GPT-4.1 or Qwen2.5-VL-72B by VIEScore: following the instruction, and quality, of 10"
    published: ClassVar[tuple[Published, ...]] = (
        Published("Step1X-Edit", "English, G_O of 10", 6.70, _BAGEL),
        Published("Gemini 2.0", "English, G_O of 10", 6.32, _BAGEL),
        Published("BAGEL", "English, G_O of 10", 6.52, _BAGEL),
        Published("GPT-4o", "English, G_O of 10", 7.53, _BAGEL),
        Published("FLUX.1 Kontext pro", "English, G_O of 10", 6.56, "technical report of Qwen-Image"),
        Published("Qwen-Image", "English, G_O of 10", 7.56, "technical report of Qwen-Image"),
    )

    def items(self) -> Sequence[Item]:
        """Return the edits in the files' order; pictures are called `fullset/TASK/en/KEY`, as its scorer wants them."""
        found: dict[tuple[str, str], Item] = {}
        for place, row in self._rows():
            task, key, prompt, language = (wanted(row, name, place, str) for name in _TEXTS)
            if language != self.language:
                continue
            if (task, key) in found:
                raise DataError(f"{place}: {task}, {key} occurs twice")
            picture = wanted(row, self.original, place)
            start = self.starting(prompt, Path(self.folder), picture, place)
            found[task, key] = Item(start, task, (called(place, f"fullset/{task}/{language}/{key}"),))
        if not found:
            raise DataError(f"{self.folder} has no instruction in the language {self.language!r}; is the copy whole?")
        return list(found.values())

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        folder, columns = Path(self.folder), (*_TEXTS, self.original)
        paths = sorted(folder.rglob("*.parquet")) or sorted(folder.rglob("*.arrow"))
        if not paths:
            raise self.lacking(self.folder, "*.arrow", "*.parquet")
        for path in paths:
            rows = read_rows(path, columns) if path.suffix == ".parquet" else read_stream(path, columns)
            for number, row in enumerate(rows, start=1):
                yield f"{path}, row {number}", row
