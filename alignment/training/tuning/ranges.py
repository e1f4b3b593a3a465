"""Which fields of a config are searched, and between which numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.config import overlay
from alignment.errors import ConfigError

DECADE = 10
"""Ranges at least as wide are searched by orders of magnitude."""
NOT_SEARCHED = {
    "steps": "how long a trial runs follows from the config's steps and --halvings",
    "seed": "a seed that comes out well is luck, and no setting",
    "evaluation": "trials that are measured in different ways cannot be compared",
    "output": "what is written changes nothing that is measured",
}
"""Fields that make no setting better, and why not."""


@dataclass(frozen=True)
class Range:
    """One field that is searched.

    Attributes:
        field: Its key, such as "optimizer.learning_rate".
        low: Smallest value.
        high: Largest.
        whole: Whether only whole numbers are meant.
    """

    field: str
    low: float
    high: float
    whole: bool

    @property
    def by_magnitude(self) -> bool:
        """Whether it is searched on a logarithmic scale."""
        return self.low > 0 and self.high >= DECADE * self.low


def read_ranges(words: Sequence[str], config: object) -> tuple[Range, ...]:
    """Read `FIELD=LOW:HIGH` words.

    Args:
        words: What was asked for.
        config: The values of the whole config, every default written out.

    Raises:
        ConfigError: If there are none, or one names no number of the config that is searched, one twice, or no range.
    """
    found: dict[str, Range] = {}
    for word in words:
        field, _, between = word.partition("=")
        if field in found:
            raise ConfigError(f"--search {word}: {field} is searched already; give each field once")
        found[field] = _range(word, field, between, _number(word, field, config))
    if not found:
        raise ConfigError("tune needs at least one --search FIELD=LOW:HIGH, such as optimizer.learning_rate=1e-4:1e-2")
    return tuple(found.values())


def _number(word: str, field: str, config: object) -> int | float:
    """Return the number that stands at a key now."""
    there = config
    if (why := NOT_SEARCHED.get(field.split(".")[0])) is not None:
        raise ConfigError(f"--search {word}: {field} is not searched: {why}")
    for name in field.split("."):
        if not isinstance(there, Mapping) or name not in there:
            known = list(there) if isinstance(there, Mapping) else []
            raise ConfigError(
                f"--search {word}: the config has no field {field}. {overlay.nearest(name, known)}"
                f"Fields there: {', '.join(map(str, known)) or 'none'}"
            )
        there = there[name]
    if isinstance(there, bool) or not isinstance(there, int | float):
        raise ConfigError(f"--search {word}: {field} is {there!r}, not a number; only numbers are searched")
    return there


def _range(word: str, field: str, between: str, now: int | float) -> Range:
    try:
        low, high = (float(end) for end in between.split(":"))
    except ValueError as error:
        raise ConfigError(f"--search {word}: expected FIELD=LOW:HIGH, two numbers, as in {field}=1e-4:1e-2") from error
    whole = isinstance(now, int)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"--search {word}: LOW has to be below HIGH, got {low:g} and {high:g}")
    if whole and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"--search {word}: {field} is a whole number, {now}; give two whole numbers")
    return Range(field, low, high, whole)
