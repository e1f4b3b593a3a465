"""Pairs in a file of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignment.errors import DataError
from evals.benchmarks.base import Benchmark, Comparison, Preference, inside, json_records, wanted

_SAID: dict[str, Preference] = {"first": 1, "second": -1, "tie": 0}


@dataclass(frozen=True)
class Pairs(Benchmark):
    """A `.jsonl` file with a comparison per line.

    A line is {"prompt": text, "first": file, "second": file, "preferred": "first" | "second" | "tie"}, files relative
    to the file's folder, and optionally "part".

    Attributes:
        file: The `.jsonl` (or `.json`) file.
    """

    file: str

    def read(self) -> list[Comparison]:
        """Return the comparisons; those of one prompt are a unit."""
        path, found = Path(self.file), []
        for number, record in enumerate(json_records(path), start=1):
            place = f"{path}, record {number}"
            prompt, first, second, said = (
                wanted(record, key, place, str) for key in ("prompt", "first", "second", "preferred")
            )
            if said not in _SAID:
                raise DataError(f"{place}: 'preferred' is {said!r}, expected one of {', '.join(_SAID)}")
            one, other = (inside(path.parent, name) for name in (first, second))
            found.append(Comparison(prompt, one, other, _SAID[said], prompt, str(record.get("part", ""))))
        return found
