"""Parquet in and out, with pyarrow where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment.errors import DataError, EnvironmentProblem


def _arrow(part: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError as error:
        raise EnvironmentProblem("parquet files need pyarrow: pip install 'visalign[data]'") from error


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file, a batch in memory at a time.

    Raises:
        DataError: If it is no parquet file.
    """
    arrow, parquet = _arrow(""), _arrow("parquet")
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as a parquet file."""
    arrow, parquet = _arrow(""), _arrow("parquet")
    parquet.write_table(arrow.Table.from_pylist([dict(record) for record in records]), path)
