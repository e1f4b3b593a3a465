"""Prompt files, and which prompts a step takes: a pure function of the step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from alignment.batches import Groups, Input, Prompt, inputs_of
from alignment.draw import Draw
from alignment.errors import DataError
from alignment.media import check_picture, find

LONGEST_PROMPT = 4000
"""Characters; every text encoder in use truncates long before."""

COLUMNS = ("prompt", "negative_prompt", "image", "last_image", "mask_image", "control_image")
"""Columns that are read where nothing is said: the prompt, and arguments by which most pipelines know a picture."""

Record = Mapping[str, object]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, in its order.

    Attributes:
        texts: One or more; those that bring a picture or another text are `Prompt`s.
    """

    texts: tuple[str, ...]

    def at(self, step: int, count: int, draw: Draw) -> Groups:
        """Return the prompts of a step: every prompt once in a random order, then again in another one.

        Args:
            step: Index of the step.
            count: Prompts a step, over all processes.
            draw: The run's random streams.
        """
        positions = range(step * count, (step + 1) * count)
        epochs = {position // len(self.texts) for position in positions}
        orders = {e: torch.randperm(len(self.texts), generator=draw.generator("order", e)).tolist() for e in epochs}
        chosen = [orders[p // len(self.texts)][p % len(self.texts)] for p in positions]
        return Groups(tuple(self.texts[i] for i in chosen), torch.tensor(list(positions)))


def read_prompts(
    path: str, dedupe: Literal["error", "drop", "keep"] = "error", columns: Mapping[str, str] | None = None
) -> Prompts:
    """Read a `.txt` file (a prompt a line) or a `.jsonl` file (an object with "prompt", and maybe "image", a line).

    Args:
        path: The file. Media that its records name are looked for in its folder.
        dedupe: What to do with a prompt that occurs twice.
        columns: Which column holds what, by the name of the pipeline's argument, where it has another name than that.

    Raises:
        DataError: Naming the file and every line that cannot be used.
    """
    file = Path(path)
    reader = _Reader(file.parent, {name: name for name in COLUMNS} | dict(columns or {}))
    for number, line in enumerate(_lines(file), start=1):
        try:
            reader.take(number, _json(line) if file.suffix == ".jsonl" else {"prompt": line})
        except DataError as error:
            reader.problems.append((number, str(error)))
    prompts = reader.prompts if dedupe == "keep" else _without_repeats(reader, tell=dedupe == "error")
    _check_alike(reader, prompts)
    if reader.problems:
        told = [f"line {number}: {problem}" for number, problem in sorted(reader.problems)]
        more = f" (and {len(told) - 5} more)" if len(told) > 5 else ""
        raise DataError(f"{path}: " + "; ".join(told[:5]) + more)
    return Prompts(tuple(prompts.values()))


@dataclass
class _Reader:
    """Turns records into prompts, and collects what is wrong with them.

    Attributes:
        folder: Where media are.
        columns: Column of each argument.
        prompts: Prompts by line.
        problems: (line, problem).
    """

    folder: Path
    columns: Mapping[str, str]
    prompts: dict[int, str] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def take(self, number: int, record: Record) -> None:
        """Add the prompt of a record.

        Raises:
            DataError: Saying what is wrong with the record.
        """
        text = record.get(self.columns["prompt"])
        if not isinstance(text, str):
            raise DataError(f'not an object with a text under "{self.columns["prompt"]}"')
        inputs = {
            argument: self._input(argument, record[column])
            for argument, column in self.columns.items()
            if argument != "prompt" and record.get(column) is not None
        }
        text = _checked(text)
        self.prompts[number] = Prompt(text, inputs) if inputs else text

    def _input(self, argument: str, value: object) -> Input:
        try:
            if "prompt" in argument:
                return _checked(value) if value else ""
            return check_picture(find(self.folder, value))
        except DataError as error:
            raise DataError(f"{argument}: {error}") from error


def _lines(file: Path) -> list[str]:
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; it should hold one prompt a line") from error
    lines = content.replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{file} is empty; it should hold one prompt a line")
    return lines


def _json(line: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"not JSON ({error})") from error
    return record if isinstance(record, dict) else {}


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise DataError(f"{text!r:.80} is not a text")
    if not text.strip():
        raise DataError("blank; remove the line")
    if "\0" in text:
        raise DataError("holds a NUL character; remove it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError("holds half a surrogate pair, which is no character; remove it")
    if len(text) > LONGEST_PROMPT:
        raise DataError(f"{len(text)} characters; at most {LONGEST_PROMPT} make sense to any text encoder; shorten it")
    return text.strip()


def _without_repeats(reader: _Reader, *, tell: bool) -> dict[int, str]:
    first: dict[str, int] = {}
    for number, prompt in reader.prompts.items():
        if prompt not in first:
            first[prompt] = number
        elif tell:
            reader.problems.append(
                (
                    number,
                    f"repeats line {first[prompt]} ({str(prompt)[:60]!r}); remove it, or set data.dedupe to drop or "
                    "keep",
                )
            )
    return {number: prompt for prompt, number in first.items()}


def _check_alike(reader: _Reader, prompts: Mapping[int, str]) -> None:
    """Ask every prompt for what the first one brings: rows of one call have the same arguments."""
    if not prompts:
        return
    first, *rest = prompts
    wanted = set(inputs_of(prompts[first]))
    for number in rest:
        if differing := sorted(wanted ^ set(inputs_of(prompts[number]))):
            reader.problems.append((number, f"line {first} and this one do not both have {', '.join(differing)}"))
