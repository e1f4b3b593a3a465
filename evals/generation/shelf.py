"""What is known of rows, on the disk: a file per unit of them, there whole or not at all.

A unit is a few rows that are made, scored or looked at together. It is the same few whatever happens: a process that is
killed leaves units that are finished, others go on with the rest, and any number of processes may share them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from alignment.errors import DataError, EnvironmentProblem


@dataclass(frozen=True)
class Row:
    """One picture or clip that is to be.

    Attributes:
        name: What it is called, `00012-3`: the number of its prompt, and of the sample.
        item: Number of the prompt.
        sample: Which of the prompt's pictures it is.
        seed: Key of its noise.
    """

    name: str
    item: int
    sample: int
    seed: int


@dataclass(frozen=True)
class Unit:
    """Rows that are worked on together.

    Attributes:
        number: Its place among the units.
        rows: One or more.
    """

    number: int
    rows: tuple[Row, ...]

    @property
    def names(self) -> list[str]:
        """The names of the rows."""
        return [row.name for row in self.rows]


def units(rows: Sequence[Row], size: int) -> list[Unit]:
    """Return the rows in units of `size`; with more rows at the end, the others stay what they were."""
    return [Unit(start // size, tuple(rows[start : start + size])) for start in range(0, len(rows), size)]


@dataclass(frozen=True)
class Shelf:
    """A folder of what is known, a file per unit.

    Attributes:
        folder: Made when something is put.
    """

    folder: Path

    def get(self, unit: Unit) -> dict[str, Any] | None:
        """Return what was put for a unit; None where nothing was, or where it was for other rows.

        Raises:
            DataError: If the file is damaged.
        """
        path = self._path(unit, "json")
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}); remove it, and it is made again") from error
        return found if isinstance(found, dict) and found.get("rows") == unit.names else None

    def put(self, unit: Unit, known: Mapping[str, object]) -> None:
        """Keep what is known of a unit.

        Raises:
            EnvironmentProblem: If the disk refuses.
        """
        text = json.dumps({"rows": unit.names, **known}, ensure_ascii=False, allow_nan=False)
        write(self._path(unit, "json"), text.encode(errors="replace"))

    def tensor(self, unit: Unit) -> Tensor | None:
        """Return the tensor `[rows, ...]` that was put for a unit; None where none was, or for other rows.

        Raises:
            DataError: If the file is damaged.
        """
        path = self._path(unit, "safetensors")
        try:
            found = load(path.read_bytes())["rows"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{path} is damaged ({error}); remove it, and it is made again") from error
        return found if len(found) == len(unit.rows) else None

    def put_tensor(self, unit: Unit, rows: Tensor) -> None:
        """Keep a tensor with a row for each row of a unit.

        Raises:
            EnvironmentProblem: If the disk refuses.
        """
        write(self._path(unit, "safetensors"), save({"rows": rows.contiguous().cpu()}))

    def _path(self, unit: Unit, ending: str) -> Path:
        return self.folder / f"{unit.number:06d}.{ending}"


def write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whoever else writes it.

    Raises:
        EnvironmentProblem: If the disk refuses.
    """
    with writing(path):
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content)
        except FileNotFoundError:  # the first in its folder
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
        partial.replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file it was, and what to do, where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be written: {error.strerror or error}; free some space, or choose another --output. What "
            "is there is kept: the same command goes on with the rest"
        ) from error
