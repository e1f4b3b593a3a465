"""Questions in the words of a model's authors, read from a file."""

from __future__ import annotations

from reward_models.base import RewardError
from reward_models.loading.whole_files import read_whole

PLACE = "{prompt}"


def read_wording(file: str | None, default: str) -> str:
    """Return the text of a file, byte for byte but for its last line break; `default` where no file is named.

    Raises:
        RewardError: If it cannot be read, or has no place for the prompt.
    """
    if file is None:
        return default
    try:
        text = read_whole(file).decode("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"template: {file} cannot be read: {error}") from error
    if PLACE not in text:
        raise RewardError(f"template: {file} has no {PLACE} in it, where the prompt would stand")
    return text
