"""Objects that are others in all but a little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def twin(thing: T, name: str, body: Mapping[str, object]) -> T:
    """Return an object that is `thing` in all but what `body` says: what is set on one is set on the other.

    Args:
        thing: Any object with attributes of its own.
        name: What the twin's class is called.
        body: Attributes of that class, which stand before those of the thing's.
    """
    made = type(name, (type(thing),), dict(body))
    # Not the class's own way: sharding swaps a network's class for one that makes another.
    found: Any = object.__new__(made)
    object.__setattr__(found, "__dict__", vars(thing))
    return found
