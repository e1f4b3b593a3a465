"""GenAI-Bench: votes on pictures or clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment.errors import DataError
from evals.benchmarks.base import Benchmark, Comparison, Preference, inside, json_records, wanted

_VOTES: dict[str, Preference] = {"leftvote": 1, "rightvote": -1, "tievote": 0, "bothbad_vote": 0}


@dataclass(frozen=True)
class GenAIBench(Benchmark):
    """GenAI-Bench (Hugging Face `TIGER-Lab/GenAI-Bench`), image or video generation.

    Layout: a JSON list of {prompt, left_image | left_video, right_image | right_video, vote_type}, and the media.

    Attributes:
        folder: A local copy.
        task: Which half.
        file: The JSON file in it; null means TASK_generation.json.
        media: The folder of the media in it.

    Source: GenAI Arena (arXiv 2406.04485). "Both bad" counts as a tie.
    """

    folder: str
    task: Literal["image", "video"] = "image"
    file: str | None = None
    media: str = "."

    def read(self) -> list[Comparison]:
        """Return the votes."""
        folder = Path(self.folder)
        path, found = folder / (self.file or f"{self.task}_generation.json"), []
        for number, record in enumerate(json_records(path), start=1):
            keys = ("prompt", f"left_{self.task}", f"right_{self.task}", "vote_type")
            place = f"{path}, record {number}"
            prompt, left, right, vote = (wanted(record, key, place, str) for key in keys)
            if vote not in _VOTES:
                raise DataError(f"{place}: vote_type {vote!r}, expected one of {', '.join(_VOTES)}")
            one, other = (inside(folder, f"{self.media}/{name}") for name in (left, right))
            found.append(Comparison(prompt, one, other, _VOTES[vote], unit=prompt))
        return found
