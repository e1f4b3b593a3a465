"""Data files of every kind, read as numbered records: text, JSON lines, Parquet, folders that `datasets` saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment.data.parquet import read_rows, read_stream
from alignment.errors import DataError
from reward_models.loading.strict_json import parse_json
from reward_models.loading.whole_files import read_whole

LINES = "metadata.jsonl"
"""What describes the pictures of an image folder, as `datasets` calls it."""

_KINDS = "a .txt, .jsonl or .parquet file, or a folder that `datasets` saved"

Record = dict[str, object]


def data_file(path: Path) -> Path:
    """Return the file that lists the media: the one given, or the one that describes the folder."""
    return path / LINES if (path / LINES).is_file() else path


def read_records(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, Record | str]]:
    """Yield every record of a data file: where it stands ("line 7"), and what it holds, or what is wrong with it.

    Args:
        file: The file, or the folder of a saved dataset.
        columns: Which columns are wanted; in a text file every line is one "prompt".

    Raises:
        DataError: If the file cannot be read at all.
        EnvironmentProblem: If reading it takes a package that is not installed.
    """
    if file.is_dir():
        yield from _rows(file, (row for path in _saved_dataset(file) for row in read_stream(path, columns)))
    elif file.suffix == ".parquet":
        yield from _rows(file, read_rows(file, columns))
    elif file.suffix == ".jsonl":
        yield from ((f"line {number}", _json(line)) for number, line in enumerate(_lines(file), start=1))
    else:
        for number, line in enumerate(_lines(file), start=1):
            yield f"line {number}", {"prompt": line}


def _lines(file: Path) -> list[str]:
    try:
        content = read_whole(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; it should be {_KINDS}") from error
    lines = content.replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{file} is empty; it should hold one prompt per line")
    return lines


def _json(line: str) -> Record | str:
    try:
        record = parse_json(line)
    except ValueError as error:
        return f"not JSON ({error})"
    return record if isinstance(record, dict) else {}


def _saved_dataset(folder: Path) -> list[Path]:
    """Return the Arrow files of a folder that `Dataset.save_to_disk` wrote: its state names them."""
    if (folder / "dataset_dict.json").is_file():
        splits = [str(path) for path in sorted(folder.iterdir()) if (path / "state.json").is_file()]
        raise DataError(f"{folder} holds several splits; name one of them: {' or '.join(splits)}")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = state.get("_data_files") if isinstance(state, dict) else None
        told = [part.get("filename") for part in files if isinstance(part, dict)] if isinstance(files, list) else []
        names = [name for name in told if isinstance(name, str)]
        if not names or names != told:
            raise ValueError("it names no files")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} is not a folder that `datasets` saved: it has no readable state.json, nor {LINES}"
        ) from error
    return [folder / Path(name).name for name in names]


def _rows(file: Path, rows: Iterator[Record]) -> Iterator[tuple[str, Record]]:
    number = 0
    for number, record in enumerate(rows, start=1):
        yield f"row {number}", record
    if not number:
        raise DataError(f"{file} has no rows; it should hold one prompt per row")
