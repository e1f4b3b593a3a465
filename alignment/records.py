"""Data files of every kind, read as numbered records: text, JSON lines, Parquet, folders that `datasets` saved."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import DataError, EnvironmentProblem

LINES = "metadata.jsonl"
"""What describes the pictures of an image folder, as `datasets` calls it."""

_KINDS = "a .txt, .jsonl or .parquet file, or a folder that `datasets` saved"

Record = dict[str, object]


def data_file(path: Path) -> Path:
    """Return the file that says where media are: the one given, or what describes a folder of them."""
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
        yield from _rows(_saved_dataset(file), columns)
    elif file.suffix == ".parquet":
        yield from _rows(_parquet(file), columns)
    elif file.suffix == ".jsonl":
        yield from ((f"line {number}", _json(line)) for number, line in enumerate(_lines(file), start=1))
    else:
        for number, line in enumerate(_lines(file), start=1):
            yield f"line {number}", {"prompt": line}


def _lines(file: Path) -> list[str]:
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; it should be {_KINDS}") from error
    lines = content.replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{file} is empty; it should hold one prompt a line")
    return lines


def _json(line: str) -> Record | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return record if isinstance(record, dict) else {}


def _arrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentProblem(
            "data.prompts: Parquet files and saved datasets are read with pyarrow, which is not installed; run "
            "`pip install pyarrow`, or write the prompts as .jsonl"
        ) from error


def _parquet(file: Path) -> Any:
    parquet, arrow = _arrow("pyarrow.parquet"), _arrow("pyarrow")
    try:
        return parquet.ParquetFile(file).read()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {_first_line(error)}") from error


def _saved_dataset(folder: Path) -> Any:
    """Return the table of a folder that `Dataset.save_to_disk` wrote: its state names its Arrow files."""
    if (folder / "dataset_dict.json").is_file():
        splits = [str(path) for path in sorted(folder.iterdir()) if (path / "state.json").is_file()]
        raise DataError(f"{folder} holds several splits; name one of them: {' or '.join(splits)}")
    arrow, ipc = _arrow("pyarrow"), _arrow("pyarrow.ipc")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [Path(part["filename"]).name for part in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder} is no folder that `datasets` saved: it has no readable state.json, nor {LINES}"
        ) from error
    try:
        parts = [ipc.open_stream(arrow.memory_map(str(folder / name))).read_all() for name in names]
        return arrow.concat_tables(parts)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{folder} is damaged: {_first_line(error)}") from error


def _rows(table: Any, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
    if not table.num_rows:
        raise DataError("the table has no rows; it should hold one prompt a row")
    wanted = table.select([name for name in dict.fromkeys(columns) if name in table.column_names])
    number = 0
    for batch in wanted.to_batches(max_chunksize=64):
        for record in batch.to_pylist():
            number += 1
            yield f"row {number}", record


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
