"""Prompt files, and which prompts a step takes: a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from alignment.data.batches import Example, Groups, Input, Prompt, inputs_of
from alignment.data.media import Clip, Picture, find_clip, find_medium, find_picture
from alignment.data.random_streams import Draw
from alignment.data.records import LINES, Record, data_file, read_records
from alignment.errors import DataError

LONGEST_PROMPT = 4000
"""Characters; every text encoder in use truncates long before."""

COLUMNS = ("prompt", "negative_prompt", "image", "last_image", "mask_image", "control_image", "video")
"""Columns that are read by default: the prompt, and the usual names of pipelines' media arguments."""


LABEL = "label"
"""Column that says how much a sample is wanted."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, in its order.

    Attributes:
        texts: One or more; those with a picture or another text are `Prompt`s.
        examples: The samples to learn from beside each, where they were asked for; else empty.
    """

    texts: tuple[str, ...]
    examples: tuple[Example, ...] = ()

    def mislabelled(self, share: float, draw: Draw) -> Prompts:
        """Return them with the labels of so many records, to the nearest whole number, made wrong: 1 where none."""
        order = torch.randperm(len(self.examples), generator=draw.generator("mislabelled")).tolist()
        wrong = set(order[: round(share * len(order))])
        examples = (
            replace(example, label=-(1.0 if example.label is None else example.label)) if place in wrong else example
            for place, example in enumerate(self.examples)
        )
        return replace(self, examples=tuple(examples))

    def at(self, step: int, count: int, draw: Draw) -> Groups:
        """Return the prompts of a step: every prompt once in a random order, then again in another one.

        Args:
            step: Index of the step.
            count: Prompts per step, over all processes.
            draw: The run's random streams.
        """
        positions = range(step * count, (step + 1) * count)
        epochs = {position // len(self.texts) for position in positions}
        orders = {e: torch.randperm(len(self.texts), generator=draw.generator("order", e)).tolist() for e in epochs}
        chosen = [orders[p // len(self.texts)][p % len(self.texts)] for p in positions]
        examples = tuple(self.examples[i] for i in chosen) if self.examples else ()
        return Groups(tuple(self.texts[i] for i in chosen), torch.tensor(list(positions)), examples)


def read_prompts(
    path: str,
    dedupe: Literal["error", "drop", "keep"] = "error",
    columns: Mapping[str, str] | None = None,
    media: tuple[str, ...] = (),
    frames: object = None,
) -> Prompts:
    """Read the prompts of a data file: a `.txt`, `.jsonl` or `.parquet` file, or a folder that `datasets` saved.

    Args:
        path: The file. Media that its records name are looked for in its folder.
        dedupe: What to do with a prompt that occurs twice; with other samples beside it, it is another record.
        columns: Which column holds what, by the name of the pipeline's argument, where the two names differ.
        media: Names of the samples to learn from that every record holds, in order.
        frames: How many frames each of these must have; anything but a whole number allows any.

    Raises:
        DataError: Naming the file and every line that cannot be used.
        EnvironmentProblem: If reading the file takes a package that is not installed.
    """
    file = data_file(Path(path))
    if media and file.suffix == ".txt":
        raise DataError(
            f"{path}: a .txt file holds prompts alone, and this source learns from samples ({', '.join(media)}); give "
            "a .jsonl, a .parquet or an image folder (docs/data.md)"
        )
    named = {name: name for name in (*COLUMNS, *media, *([LABEL] if media else []))}
    described = {media[0] if media else "image": "file_name"} if file.name == LINES else {}
    reader = _Reader(file if file.is_dir() else file.parent, named | described | dict(columns or {}), media, frames)
    for place, record in read_records(file, tuple(reader.columns.values())):
        reader.take(place, record)
    prompts = reader.prompts if dedupe == "keep" else _without_repeats(reader, tell=dedupe == "error")
    _check_alike(reader, prompts)
    if reader.problems:
        lines = [f"{place}: {problem}" for place, problem in sorted(reader.problems, key=_number)]
        more = f" (and {len(lines) - 5} more)" if len(lines) > 5 else ""
        raise DataError(f"{path}: " + "; ".join(lines[:5]) + more)
    return Prompts(tuple(prompts.values()), tuple(reader.examples[place] for place in prompts) if media else ())


@dataclass
class _Reader:
    """Turns records into prompts, and collects what is wrong with them.

    Attributes:
        folder: Where media are.
        columns: Column of each argument.
        media: Names of the samples to learn from.
        frames: How many frames each of them has, if that is a number.
        prompts: Prompts by place.
        examples: What there is to learn from, by place.
        problems: (place, problem).
    """

    folder: Path
    columns: Mapping[str, str]
    media: tuple[str, ...] = ()
    frames: object = None
    prompts: dict[str, str] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def take(self, place: str, record: Record | str) -> None:
        """Add the prompt of a record, or what is wrong with it."""
        try:
            if isinstance(record, str):
                raise DataError(record)
            prompt = self._prompt(record)
            if self.media:
                self.examples[place] = self._example(record)
            self.prompts[place] = prompt
        except DataError as error:
            self.problems.append((place, str(error)))

    def _prompt(self, record: Record) -> str:
        text = record.get(self.columns["prompt"])
        if not isinstance(text, str):
            raise DataError(f'not an object with a text under "{self.columns["prompt"]}"')
        text = _checked(text)
        others = {"prompt", *([*self.media, LABEL] if self.media else [])}
        claimed = {self.columns[name] for name in others}
        inputs = {
            argument: self._input(argument, record[column])
            for argument, column in self.columns.items()
            if argument not in others and column not in claimed and record.get(column) is not None
        }
        return Prompt(text, inputs) if inputs else text

    def _example(self, record: Record) -> Example:
        media = tuple(self._sample(name, record.get(self.columns[name])) for name in self.media)
        for name, other in zip(self.media[1:], media[1:], strict=True):
            if other.digest == media[0].digest:
                raise DataError(f"{self.media[0]} and {name} are the same file: neither is preferred")
            if _shape(other) != _shape(media[0]):
                raise DataError(
                    f"{self.media[0]} is {_shape(media[0])}, {name} {_shape(other)}: both sides of a pair have one "
                    "shape; cut or scale one of them"
                )
        return Example(media, _number_of(record.get(self.columns[LABEL])))

    def _sample(self, name: str, value: object) -> Picture | Clip:
        if value is None:
            raise DataError(
                f'"{self.columns[name]}" is missing: the {name} sample to learn from (data.columns may name another)'
            )
        try:
            found = find_medium(self.folder, value)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        count = found.frames if isinstance(found, Clip) else 1
        if isinstance(self.frames, int) and count != self.frames:
            raise DataError(f"{name}: {value} has {count} of the {self.frames} frames of policy.call.num_frames")
        return found

    def _input(self, argument: str, value: object) -> Input:
        try:
            if "prompt" in argument:
                return _checked(value) if value else ""
            return find_clip(self.folder, value) if "video" in argument else find_picture(self.folder, value)
        except DataError as error:
            raise DataError(f"{argument}: {error}") from error


def _shape(sample: Picture | Clip) -> str:
    frames = f"{sample.frames} frames of " if isinstance(sample, Clip) else ""
    return f"{frames}{sample.size[0]} x {sample.size[1]}"


def _number_of(label: object) -> float | None:
    """Return the label of a record: a number, or true and false for 1 and -1."""
    if isinstance(label, bool):
        return 1.0 if label else -1.0
    if label is None:
        return None
    if not isinstance(label, int | float) or not math.isfinite(label):
        raise DataError(f"{LABEL}: {label!r:.80} is neither a number nor true or false")
    return float(label)


def _number(problem: tuple[str, str]) -> int:
    return int(problem[0].split()[1])


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise DataError(f"{text!r:.80} is not a text")
    if not text.strip():
        raise DataError("blank; remove the line")
    if "\0" in text:
        raise DataError("holds a NUL character; remove it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError("holds half a surrogate pair, which is not a character; remove it")
    if len(text) > LONGEST_PROMPT:
        raise DataError(f"{len(text)} characters; at most {LONGEST_PROMPT} make sense to any text encoder; shorten it")
    return text.strip()


def _without_repeats(reader: _Reader, *, tell: bool) -> dict[str, str]:
    first: dict[tuple[str, Example | None], str] = {}
    for place, prompt in reader.prompts.items():
        record = (prompt, reader.examples.get(place))
        if record not in first:
            first[record] = place
        elif tell:
            repeats = f"repeats {first[record]} ({str(prompt)[:60]!r}); remove it, or set data.dedupe to drop or keep"
            reader.problems.append((place, repeats))
    return {place: prompt for (prompt, _), place in first.items()}


def _check_alike(reader: _Reader, prompts: Mapping[str, str]) -> None:
    """Ask every prompt for what the first one brings: rows of one call have the same arguments."""
    if not prompts:
        return
    first, *rest = prompts
    wanted = set(inputs_of(prompts[first]))
    for place in rest:
        if differing := sorted(wanted ^ set(inputs_of(prompts[place]))):
            reader.problems.append((place, f"{first} and this one do not both have {', '.join(differing)}"))
