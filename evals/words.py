"""Words of a command line that name several things, each with its fields."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.errors import ConfigError


def named(words: Sequence[str]) -> dict[str, tuple[str, list[str]]]:
    """Return (type, overrides) of each reward among words such as "shapes strict=1 clip"; twice the same get a number.

    Raises:
        ConfigError: If there is none, or a field stands before the first.
    """
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if "=" not in word:
            found.append((word, []))
        elif found:
            found[-1][1].append(word)
        else:
            raise ConfigError(
                f"{word} stands before any reward; name the reward first: visalign rewards bench REWARD {word}"
            )
    if not found:
        raise ConfigError(
            "which rewards? visalign rewards bench REWARD [key=value ...] [REWARD ...]; see visalign rewards list"
        )
    titles = [" ".join([name, *fields]) for name, fields in found]
    if len(set(titles)) < len(titles):
        raise ConfigError(f"the same reward twice: {', '.join(titles)}")
    return dict(zip(titles, found, strict=True))
