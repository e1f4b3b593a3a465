"""Ctrl-C and SIGTERM: finish the step, save, and leave; a second one leaves at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

STDERR = 2


class StopSignal:
    """Remembers that the process was asked to stop, while its context is open.

    Attributes:
        received: The signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        # Not `print`, which must not be entered again from a handler that interrupted it.
        os.write(STDERR, f"\n{self.received.name}: saving after this step; once more stops at once\n".encode())
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned
        self._before.clear()
