"""Prompt files, and which prompts a step takes: a pure function of the step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from alignment.batches import Groups
from alignment.draw import Draw
from alignment.errors import DataError

LONGEST_PROMPT = 4000
"""Characters; every text encoder in use truncates long before."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file, in its order.

    Attributes:
        texts: One or more.
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


def read_prompts(path: str, dedupe: Literal["error", "drop", "keep"] = "error") -> Prompts:
    """Read a `.txt` file (a prompt a line) or a `.jsonl` file (an object with "prompt" a line).

    Raises:
        DataError: Naming the file and every line that cannot be used.
    """
    file = Path(path)
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; it should hold one prompt a line") from error
    lines = content.replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty; it should hold one prompt a line")
    read = _json_prompt if file.suffix == ".jsonl" else _plain_prompt
    texts: dict[int, str] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        text, problem = read(line)
        if problem:
            problems.append(f"line {number}: {problem}")
        else:
            texts[number] = text
    if dedupe != "keep":
        texts, repeated = _without_repeats(texts)
        problems += repeated if dedupe == "error" else []
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataError(f"{path}: " + "; ".join(problems[:5]) + more)
    return Prompts(tuple(texts.values()))


def _plain_prompt(line: str) -> tuple[str, str]:
    if not line.strip():
        return "", "blank; remove the line"
    if "\0" in line:
        return "", "holds a NUL character; remove it"
    if any("\ud800" <= character <= "\udfff" for character in line):
        return "", "holds half a surrogate pair, which is no character; remove it"
    if len(line) > LONGEST_PROMPT:
        return "", f"{len(line)} characters; at most {LONGEST_PROMPT} make sense to any text encoder; shorten it"
    return line.strip(), ""


def _json_prompt(line: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except ValueError as error:
        return "", f"not JSON ({error})"
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        return "", 'not an object with a text under "prompt"'
    return _plain_prompt(record["prompt"])


def _without_repeats(texts: dict[int, str]) -> tuple[dict[int, str], list[str]]:
    first: dict[str, int] = {}
    problems = []
    for number, text in texts.items():
        if text in first:
            problems.append(
                f"line {number}: repeats line {first[text]} ({text[:60]!r}); remove it, or set data.dedupe to drop or "
                "keep"
            )
        else:
            first[text] = number
    return {number: text for text, number in first.items()}, problems
