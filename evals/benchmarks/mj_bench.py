"""MJ-Bench: alignment, safety, quality and bias."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import DataError
from evals.benchmarks.base import Benchmark, Comparison, parquet_records, wanted
from evals.medium import Medium


@dataclass(frozen=True)
class MJBench(Benchmark):
    """MJ-Bench (Hugging Face `MJ-Bench/MJ-Bench`).

    Layout: parquet files named after their split, with caption, image0, image1 ({"bytes": ...}) and label (0 or 1:
    which one is preferred).

    Attributes:
        folder: A local copy.
        splits: How the names of the parquet files begin; each is a part of the report.

    Source: MJ-Bench (arXiv 2407.04842). The bias split needs measures of its own, and is not offered.
    """

    folder: str
    splits: tuple[str, ...] = ("alignment", "safety", "quality")

    def read(self) -> list[Comparison]:
        """Return the comparisons of every split."""
        folder, found = Path(self.folder), []
        for split in self.splits:
            for number, record in enumerate(parquet_records(folder, split), start=1):
                place = f"{folder}, {split} record {number}"
                caption, label = wanted(record, "caption", place, str), wanted(record, "label", place, int)
                if label not in (0, 1):
                    raise DataError(f"{place}: label is {label!r}, expected 0 or 1")
                one, other = (
                    Medium(f"{split}-{number}-{key}.png", content=_bytes(record, key, place))
                    for key in ("image0", "image1")
                )
                found.append(Comparison(caption, one, other, 1 if label == 0 else -1, f"{split}:{caption}", split))
        return found


def _bytes(record: dict[str, Any], key: str, place: str) -> bytes:
    return wanted(wanted(record, key, place, dict), "bytes", f"{place}, {key}", bytes)
