"""What a benchmark of reward models is: comparisons that people have made."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from alignment.data.parquet import read_rows
from alignment.errors import DataError
from evals.medium import Medium
from reward_models.loading.strict_json import json_lines, parse_json
from reward_models.loading.whole_files import read_whole

Preference = Literal[-1, 0, 1]
"""1 where people prefer the first, -1 where they prefer the second, 0 where neither."""


@dataclass(frozen=True)
class Comparison:
    """Two media made for one prompt, and which one people prefer.

    Attributes:
        prompt: What was asked for.
        first: One of them.
        second: The other.
        human: Which one people prefer.
        unit: Comparisons of one unit (usually a prompt) depend on each other; intervals resample units.
        part: A part of the benchmark that is reported by itself, such as "count"; empty for none.
    """

    prompt: str
    first: Medium
    second: Medium
    human: Preference
    unit: str
    part: str = ""


@runtime_checkable
class Benchmark(Protocol):
    """Where human preferences are, in the layout of those who publish them; `read` finds them.

    The file `evals/benchmarks/NAME.py` holds the class that the command line calls NAME. Nothing is downloaded:
    `folder` is a local copy.
    """

    home: ClassVar[str] = "evals.benchmarks"

    def read(self) -> list[Comparison]:
        """Return every comparison, in the order of the data.

        Raises:
            DataError: Naming the file and record that cannot be used.
        """
        ...


def json_records(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a `.json` list or of a `.jsonl` file.

    Raises:
        DataError: If it cannot be read as that.
    """
    found = json_of(path)
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise DataError(f"{path} should hold a list of objects")
    return found


def json_of(path: Path) -> Any:
    """Return what a `.json` file holds, or the list of what the lines of a `.jsonl` file do.

    Raises:
        DataError: If it cannot be read as that, or an object in it has a key twice.
    """
    text = _text(path)
    try:
        return [held for _, held in json_lines(text)] if path.suffix == ".jsonl" else parse_json(text)
    except ValueError as error:
        raise DataError(f"{path} is not JSON that can be used: {error}") from error


def csv_records(path: Path) -> list[dict[str, str]]:
    """Return the rows of a `.csv` file with a header.

    Raises:
        DataError: If it cannot be read, or has no rows.
    """
    found = list(csv.DictReader(io.StringIO(_text(path))))
    if not found:
        raise DataError(f"{path} should hold a line of names and rows below it; it has no rows")
    return found


def parquet_records(folder: Path, begin: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of the parquet files below `folder` whose names begin with `begin`, one after the other.

    Raises:
        DataError: If there are no such files, or one cannot be read.
        EnvironmentProblem: If pyarrow is not installed.
    """
    paths = sorted(folder.rglob(f"{begin}*.parquet"))
    if not paths:
        what = "there is no such folder" if not folder.is_dir() else f"it holds no file like {begin}*.parquet"
        raise DataError(f"{folder}: {what}; is `folder` the benchmark's own folder?")
    for path in paths:
        yield from read_rows(path)


def _text(path: Path) -> str:
    try:
        return read_whole(path).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; is `folder` the benchmark's own folder?") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error


def inside(folder: Path, name: object) -> Medium:
    """Return the medium a record calls `name`, which must lie in `folder`.

    Raises:
        DataError: If it does not, or is not there.
    """
    from alignment.data.media import find

    return Medium.file(find(folder, name))


def wanted(record: dict[str, Any], key: str, place: str, kind: type | tuple[type, ...] = object) -> Any:
    """Return `record[key]`.

    Args:
        record: One of a file.
        key: What is wanted of it.
        place: Which file and record it is, for messages.
        kind: What the value has to be.

    Raises:
        DataError: If the record lacks it, or it is something else.
    """
    if key not in record:
        raise DataError(f"{place}: there is no '{key}'; it has {', '.join(map(str, record))}")
    if not isinstance(record[key], kind):
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{place}: '{key}' is {record[key]!r:.80}, expected {names}")
    return record[key]


def ranked(prompt: str, media: list[Medium], ranks: list[Any], unit: str, place: str) -> list[Comparison]:
    """Return every pair of a ranking, 0 or 1 the best; equal ranks are a tie.

    Raises:
        DataError: If there is not one number per medium.
    """
    if len(ranks) != len(media) or not all(isinstance(rank, int | float) for rank in ranks):
        raise DataError(f"{place}: {len(media)} media, and the ranks {ranks!r:.80}; expected one number each")
    return [
        Comparison(prompt, media[i], media[j], verdict(ranks[j] - ranks[i]), unit)
        for i in range(len(media))
        for j in range(i + 1, len(media))
    ]


def verdict(difference: float) -> Preference:
    """Return the sign of how much better the first is."""
    return 1 if difference > 0 else -1 if difference < 0 else 0
