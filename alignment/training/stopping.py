"""Ctrl-C and SIGTERM: finish the step, save, and leave; a second one leaves at once."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType

STDERR = 2


class StopSignal:
    """Remembers that the process was asked to stop, while its context is open.

    Attributes:
        received: The signal, or None.
    """

    _number: signal.Signals | None = None

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._other = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        signal.set_wakeup_fd(self._other)
        os.close(self._read)
        os.close(self._write)

    def asked(self) -> signal.Signals | None:
        """Return the signal, from any thread and at once.

        `received` is set by Python, between two of its instructions: not while it is inside other code.
        """
        with suppress(BlockingIOError):
            for number in os.read(self._read, 64):
                if number in (signal.SIGINT, signal.SIGTERM):
                    self._number = signal.Signals(number)
        return self.received or self._number

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        # Not `print`, which must not be entered again from a handler that interrupted it.
        os.write(STDERR, f"\n{self.received.name}: saving after this step; once more stops at once\n".encode())
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself returned
        self._before.clear()
