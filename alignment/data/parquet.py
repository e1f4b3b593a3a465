"""Parquet in and out, and the Arrow files of `datasets`, with pyarrow where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import DataError, EnvironmentProblem
from reward_models.foreign import first_line
from reward_models.loading.whole_files import check_end

_AT_ONCE = 64
"""Rows in memory; each may hold a picture."""


def arrow(part: str = "") -> Any:
    """Return pyarrow, or a part of it.

    Raises:
        EnvironmentProblem: If it is not installed.
    """
    try:
        return importlib.import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError as error:
        raise EnvironmentProblem(
            "Parquet files and saved datasets are read and written with pyarrow, which is not installed; run "
            "`pip install pyarrow`, or use .jsonl"
        ) from error


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file.

    Args:
        path: The file.
        columns: Which are wanted, where the file has them; null takes all.

    Raises:
        DataError: If it is not a Parquet file.
        EnvironmentProblem: If pyarrow is not installed.
    """
    try:
        check_end(path)
        with arrow("parquet").ParquetFile(path) as file:
            named = file.schema_arrow.names
            wanted = None if columns is None else [name for name in dict.fromkeys(columns) if name in named]
            for batch in file.iter_batches(batch_size=_AT_ONCE, columns=wanted):
                yield from _rows(batch)
    except (arrow().ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def read_stream(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file as `datasets` writes them; the disk is read when rows are asked for.

    Args:
        path: The file.
        columns: Which are wanted, where the file has them.

    Raises:
        DataError: If it is missing or damaged.
        EnvironmentProblem: If pyarrow is not installed.
    """
    pyarrow, ipc = arrow(), arrow("ipc")
    try:
        check_end(path)
        table = ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
        wanted = table.select([name for name in dict.fromkeys(columns) if name in table.column_names])
        for batch in wanted.to_batches(max_chunksize=_AT_ONCE):
            yield from _rows(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged: {first_line(error)}") from error


def _rows(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a batch, of which arrow believes all that a file says before it is asked to look."""
    batch.validate(full=True)
    return batch.to_pylist()


def write_rows(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as a Parquet file.

    Raises:
        DataError: If a column holds what Parquet cannot, such as numbers and texts in one.
        EnvironmentProblem: If pyarrow is not installed.
    """
    try:
        arrow("parquet").write_table(arrow().Table.from_pylist([dict(record) for record in records]), path)
    except (arrow().ArrowException, OverflowError) as error:
        raise DataError(f"{path} cannot be written as Parquet: {first_line(error)}") from error
