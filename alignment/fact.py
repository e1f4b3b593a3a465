"""What a kind of thing says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any


class Fact:
    """A read-only property with an answer for all, that a dataclass may have as a field of that name instead.

    A plain property of a base class is in the way of a field that has no default: the dataclass takes it for the
    default, and cannot be given a value.
    """

    def __init__(self, tell: Callable[[Any], Any]) -> None:
        self._tell = tell
        self.__doc__ = tell.__doc__

    def __get__(self, whole: object, kind: type) -> Any:
        if whole is None:  # a dataclass asks whether the class has a default
            raise AttributeError(f"{self._tell.__name__} is a fact of a {kind.__name__}, not of the class")
        return self._tell(whole)


if TYPE_CHECKING:

    def fact(tell: Callable[[Any], Any]) -> Any:
        """Be of any type: type checkers refuse a field in the place of a property; the field says its own type."""
else:
    fact = Fact
