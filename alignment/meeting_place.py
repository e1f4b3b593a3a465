"""Where the processes of a run meet: the launcher's key-value store, which is lost with the process that keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from alignment.errors import ProcessLost


class MeetingPlaceLost(ProcessLost):
    """Nothing more can be told to, or heard from, any process."""

    def __init__(self) -> None:
        super().__init__(
            "the process at which all others meet is lost: the first one, or the launcher that knows all addresses. "
            "See what became of it"
        )


class Store(Protocol):
    """What is asked of the launcher's key-value store."""

    def add(self, key: str, value: int, /) -> int:
        """Add to a number, from 0, and return the sum."""
        ...

    def set(self, key: str, value: str, /) -> None:
        """Write a value."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return a value that is there."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys are there."""
        ...

    def delete_key(self, key: str, /) -> bool:
        """Forget a value; return whether there was one."""
        ...

    def compare_set(self, key: str, expected: str, value: str, /) -> bytes:
        """Write a value where the expected one is, and return what is there now."""
        ...


class MeetingPlace:
    """A store whose loss has a name.

    Args:
        store: The launcher's.

    Raises:
        MeetingPlaceLost: In place of what the store says of its connection, by every method.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, key: str, value: int, /) -> int:
        """See `Store`."""
        with _reached():
            return self._store.add(key, value)

    def set(self, key: str, value: str, /) -> None:
        """See `Store`."""
        with _reached():
            self._store.set(key, value)

    def get(self, key: str, /) -> bytes:
        """See `Store`."""
        with _reached():
            return self._store.get(key)

    def check(self, keys: list[str], /) -> bool:
        """See `Store`."""
        with _reached():
            return self._store.check(keys)

    def delete_key(self, key: str, /) -> bool:
        """See `Store`."""
        with _reached():
            return self._store.delete_key(key)

    def compare_set(self, key: str, expected: str, value: str, /) -> bytes:
        """See `Store`."""
        with _reached():
            return self._store.compare_set(key, expected, value)


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # as torch.distributed has them
        raise MeetingPlaceLost from error
