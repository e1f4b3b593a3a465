"""ImageRewardDB's test set: rankings of four to nine pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks.base import Benchmark, Comparison, inside, json_records, ranked, wanted


@dataclass(frozen=True)
class ImageRewardDB(Benchmark):
    """ImageRewardDB, test split (Hugging Face `THUDM/ImageRewardDB`, or the repository's `data/test.json`).

    Layout: a JSON list of {id, prompt, generations, ranking} (1 is best; most records have ties), and the pictures.

    Attributes:
        folder: A local copy.
        file: The JSON file in it.
        pictures: The folder of the pictures in it.

    Source: ImageReward (arXiv 2304.05977). Their accuracy is over pairs of different ranks: "accuracy" here.
    """

    folder: str
    file: str = "test.json"
    pictures: str = "test_images"

    def read(self) -> list[Comparison]:
        """Return all pairs of every ranking, ties too."""
        folder = Path(self.folder)
        path, found = folder / self.file, []
        for number, record in enumerate(json_records(path), start=1):
            place = f"{path}, record {number}"
            prompt = wanted(record, "prompt", place, str)
            names, ranks = (wanted(record, key, place, list) for key in ("generations", "ranking"))
            media = [inside(folder, f"{self.pictures}/{name}") for name in names]
            found += ranked(prompt, media, ranks, str(record.get("id", number)), place)
        return found
