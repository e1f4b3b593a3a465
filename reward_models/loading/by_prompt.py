"""What a user's file has for each prompt, an object a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from reward_models.base import RewardError
from reward_models.loading.strict_json import parse_json
from reward_models.loading.whole_files import read_lines

T = TypeVar("T")


def read_by_prompt(who: str, file: str, read: Callable[[object], tuple[str, T]], form: str) -> dict[str, T]:
    """Return what the lines of a `.jsonl` file say, by prompt.

    Args:
        who: Who asks for it, for messages.
        file: The file.
        read: Returns the prompt of a line's object and what it has for it; raises ValueError for what is wrong.
        form: What a line looks like, for messages.

    Raises:
        RewardError: Naming the file and line that cannot be used.
    """
    try:
        lines = read_lines(file)
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"{who}: {file} cannot be read: {error}") from error
    found: dict[str, T] = {}
    for number, line in enumerate(lines, start=1):
        try:
            prompt, told = read(parse_json(line))
        except ValueError as error:
            raise RewardError(f"{who}: {file}:{number}: {error}; a line is {form}") from error
        found[prompt] = told
    return found
