"""HPDv2's test set: 400 prompts, nine pictures each, ranked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks.base import Benchmark, Comparison, inside, json_records, ranked, wanted


@dataclass(frozen=True)
class HPDv2(Benchmark):
    """Human Preference Dataset v2, test split (Hugging Face `ymhao/HPDv2`).

    Layout: `test.json`, a list of {prompt, image_path, rank} (0 is best; averaged over people), and `test/*.jpg`.

    Attributes:
        folder: A local copy.
        pictures: The folder of the pictures in it.

    Source: Human Preference Score v2 (arXiv 2306.09341).
    """

    folder: str
    pictures: str = "test"

    def read(self) -> list[Comparison]:
        """Return all pairs of every ranking."""
        path, found = Path(self.folder) / "test.json", []
        for number, record in enumerate(json_records(path), start=1):
            place = f"{path}, record {number}"
            prompt = wanted(record, "prompt", place, str)
            names, ranks = (wanted(record, key, place, list) for key in ("image_path", "rank"))
            media = [inside(Path(self.folder), f"{self.pictures}/{name}") for name in names]
            found += ranked(prompt, media, ranks, str(number), place)
        return found
