"""VideoGen-RewardBench: pairs of clips, judged in four respects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment.errors import DataError
from evals.benchmarks.base import Benchmark, Comparison, Preference, csv_records, inside, wanted

_SAID: dict[str, Preference] = {"A": 1, "B": -1, "same": 0}


@dataclass(frozen=True)
class VideoGenRewardBench(Benchmark):
    """VideoGen-RewardBench (Hugging Face `KwaiVGI/VideoGen-RewardBench`).

    Layout: `videogen-rewardbench.csv` with path_A, path_B, prompt and, for each respect, A, B or same.

    Attributes:
        folder: A local copy.
        respect: Visual quality, motion quality, text alignment, or overall.

    Source: VideoAlign (arXiv 2501.13918).
    """

    folder: str
    respect: Literal["Overall", "VQ", "MQ", "TA"] = "Overall"

    def read(self) -> list[Comparison]:
        """Return the comparisons in that respect."""
        folder = Path(self.folder)
        path, found = folder / "videogen-rewardbench.csv", []
        for number, record in enumerate(csv_records(path), start=1):
            place = f"{path}, row {number}"
            prompt, first, second, said = (
                wanted(record, key, place, str) for key in ("prompt", "path_A", "path_B", self.respect)
            )
            if said not in _SAID:
                raise DataError(f"{place}: {self.respect} is {said!r}, expected A, B or same")
            found.append(Comparison(prompt, inside(folder, first), inside(folder, second), _SAID[said], unit=prompt))
        return found
