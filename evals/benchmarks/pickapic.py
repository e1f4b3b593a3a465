"""Pick-a-Pic: pairs in parquet files, pictures inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks.base import Benchmark, Comparison, parquet_records, verdict, wanted
from evals.medium import Medium


@dataclass(frozen=True)
class PickAPic(Benchmark):
    """Pick-a-Pic v1 or v2 (Hugging Face `yuvalkirstain/pickapic_v2`).

    Layout: parquet files with caption, jpg_0, jpg_1 (bytes), label_0, label_1 (0, 0.5 or 1) and has_label.

    Attributes:
        folder: A local copy.
        split: How the names of the parquet files begin.

    Source: Pick-a-Pic (arXiv 2305.01569).
    """

    folder: str
    split: str = "test_unique"

    def read(self) -> list[Comparison]:
        """Return the labelled pairs."""
        folder, found = Path(self.folder), []
        for number, record in enumerate(parquet_records(folder, self.split), start=1):
            if not record.get("has_label", True):
                continue
            place = f"{folder}, record {number}"
            caption, label = wanted(record, "caption", place, str), wanted(record, "label_0", place, (int, float))
            first, second = (wanted(record, key, place, bytes) for key in ("jpg_0", "jpg_1"))
            one, other = (Medium(f"{number}-{side}.jpg", content=jpg) for side, jpg in enumerate((first, second)))
            found.append(Comparison(caption, one, other, verdict(label - 0.5), unit=caption))
        return found
