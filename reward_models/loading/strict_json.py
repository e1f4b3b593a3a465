"""JSON that people and publishers write, in which a slip is refused and not guessed away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: If it is no JSON, or an object in it has a key twice: one of the two values would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def json_lines(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line of a `.jsonl` text that is not blank, from 1 on, and what it holds.

    Raises:
        ValueError: As `parse_json` does, naming the line.
    """
    for number, line in enumerate(text.split("\n"), start=1):  # str.splitlines also splits within texts
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.80} is given twice; remove or rename one of them")
    return found
