"""HPDv3: pairs, the preferred picture first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evals.benchmarks.base import Benchmark, Comparison, inside, json_records, ranked, wanted


@dataclass(frozen=True)
class HPDv3(Benchmark):
    """Human Preference Dataset v3 (Hugging Face `MizzenAI/HPDv3`).

    Layout: a JSON list of {prompt, path1, path2}, path1 always the preferred one; or, for rankings, of
    {prompt, generations, ranking}. Paths are relative to the folder.

    Attributes:
        folder: A local copy.
        file: The JSON file in it.

    Source: HPSv3 (arXiv 2508.03789).
    """

    folder: str
    file: str = "test.json"

    def read(self) -> list[Comparison]:
        """Return the pairs, every second one swapped so that "the first is better" is never the answer to all."""
        folder = Path(self.folder)
        path, found = folder / self.file, []
        for number, record in enumerate(json_records(path), start=1):
            place = f"{path}, record {number}"
            prompt = wanted(record, "prompt", place, str)
            if "generations" in record:
                media = [inside(folder, name) for name in wanted(record, "generations", place, list)]
                found += ranked(prompt, media, wanted(record, "ranking", place, list), prompt, place)
                continue
            better, worse = (inside(folder, wanted(record, key, place)) for key in ("path1", "path2"))
            turned = number % 2 == 0
            first, second = (worse, better) if turned else (better, worse)
            found.append(Comparison(prompt, first, second, -1 if turned else 1, unit=prompt))
        return found
