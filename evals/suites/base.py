"""What a suite is: prompts that generators are compared on, what scores their pictures, and what others have published.

A suite is read from a local copy in the layout of those who publish it; nothing is downloaded.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from alignment.data.batches import Prompt
from alignment.data.media import find_picture, leads_out
from alignment.errors import DataError
from reward_models.base import RewardModel
from reward_models.loading.whole_files import read_whole


@dataclass(frozen=True)
class Item:
    """One prompt of a suite.

    Attributes:
        prompt: What generators are asked for; with a picture or another text it is a `Prompt`.
        category: The part of the suite that is reported by itself, such as "counting"; empty for none.
        files: Names of the pictures of a sample in the publishers' layout, `{k}` standing for its number: where a
            folder of pictures made elsewhere has them.
    """

    prompt: str
    category: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A number that somebody has published, to see whether one's own are of that order.

    Attributes:
        model: Of what generator.
        metric: What was measured, as its publishers call it.
        value: The number, on their scale.
        source: Where it is from.
    """

    model: str
    metric: str
    value: float
    source: str


@runtime_checkable
class Suite(Protocol):
    """Prompts that generators are compared on. The file `evals/suites/NAME.py` holds what the command line calls NAME.

    Attributes:
        licence: Of the prompts.
        place: Where they are to be had.
        pictures: Pictures per prompt that its publishers ask for.
        scored: What its publishers score with, where that is not what `rewards` has; empty where it is.
        published: Their numbers, and others'.
    """

    home: ClassVar[str] = "evals.suites"
    licence: ClassVar[str] = ""
    place: ClassVar[str] = ""
    pictures: ClassVar[int] = 1
    scored: ClassVar[str] = ""
    published: ClassVar[tuple[Published, ...]] = ()

    def items(self) -> Sequence[Item]:
        """Return its prompts, in order.

        Raises:
            DataError: Naming the file and record that cannot be used, and where to get the suite.
        """
        ...

    def rewards(self) -> Mapping[str, RewardModel]:
        """Return what scores its pictures where the command line names nothing, by title; nothing by default."""
        return {}

    def reference(self, number: int, seed: int) -> Tensor | None:
        """Return a picture or clip as they should be, `[F, 3, H, W]` in [0, 1]; None by default.

        Args:
            number: Which; any number of them may be asked for.
            seed: Of what is made by chance.
        """
        return None


class LocalCopy:
    """What suites share that are read from a copy of their publishers' files."""

    def text(self, folder: str, *names: str) -> tuple[Path, str]:
        """Return the first file of these names in a folder, and its text.

        Raises:
            DataError: If the folder has none of them, with the licence of the suite and where it is to be had.
        """
        for path in (Path(folder) / name for name in names):
            if path.is_file():
                return path, decoded(path)
        raise self.lacking(folder, *names)

    def lacking(self, folder: str, *names: str) -> DataError:
        """Return the error of a folder that has none of these names."""
        what = "there is no such folder" if not Path(folder).is_dir() else f"it has no {' or '.join(names)}"
        return DataError(f"folder: {folder}: {what}. {self._told()}")

    def starting(self, prompt: str, folder: Path, picture: object, place: str) -> Prompt:
        """Return a prompt with the picture that a pipeline starts from, its `image`.

        Args:
            prompt: The text.
            folder: Where pictures are.
            picture: The name of its file there, or what a table holds of it.
            place: Which record it is, for messages.

        Raises:
            DataError: If there is no such picture, or it cannot be decoded.
        """
        try:
            return Prompt(prompt, {"image": find_picture(folder, picture)})
        except DataError as error:
            raise DataError(f"{place}: {error}. {self._told()}") from error

    def _told(self) -> str:
        assert isinstance(self, Suite)
        return (
            f"{type(self).__name__} is read from a copy of {self.place} (licence of the prompts: {self.licence}); "
            "nothing is downloaded"
        )


def called(place: str, name: str) -> str:
    """Return what a table calls a picture, for `Item.files`.

    Args:
        place: Which record it is, for messages.
        name: Its path in a folder of pictures, without an ending.

    Raises:
        DataError: If that leads out of the folder.
    """
    if leads_out(name):
        raise DataError(f"{place}: {name!r:.80} leads out of a folder of pictures; is the copy whole?")
    return name.replace("{", "{{").replace("}", "}}")


def decoded(path: Path) -> str:
    """Return the text of a file; line ends may be any.

    Raises:
        DataError: If it cannot be read as UTF-8.
    """
    try:
        return read_whole(path).decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error


def table(path: Path, text: str, delimiter: str = ",", *, quoted: bool = True) -> list[dict[str, str]]:
    """Return the rows of a table with a header.

    Raises:
        DataError: If it has no rows, a quotation mark that nothing closes, or a row with more fields than names.
    """
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    try:
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=quoted))
    except csv.Error as error:
        raise DataError(f"{path} is no table, or a damaged one: {error}") from error
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise DataError(
                f"{path}, row {number} has more fields than the table has names: a text that holds {delimiter!r} "
                "stands in double quotes"
            )
    if not rows:
        raise DataError(f"{path} should hold a line of names and rows below it; it has no rows")
    return rows


def lines(path: Path, text: str) -> list[str]:
    """Return the lines of a text that are not blank.

    Raises:
        DataError: If there is none.
    """
    found = [line.strip() for line in text.split("\n") if line.strip()]
    if not found:
        raise DataError(f"{path} is empty")
    return found
