"""How the processes of a run keep together: nobody waits without end, and what ends one of them ends all.

Every exchange between processes begins with a meeting, kept in the launcher's key-value store. Code that exchanges
tensors hears no signal and waits for a process that will not come; a meeting is plain Python. Whoever comes to it
learns that another process has failed, whoever waits too long can say for whom, and a signal is heeded while one waits.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from alignment.errors import EndedElsewhere, OutOfStep, ProcessLost, Stopped, VisalignError
from alignment.meeting_place import MeetingPlace, MeetingPlaceLost, Store
from alignment.reports.terminal import complain
from reward_models.base import RewardError
from reward_models.foreign import first_line, out_of_memory

PAUSE = 0.05
"""Longest pause between two looks at the store, in seconds."""
GRACE = 5.0
"""Seconds for the others to come, for a process that was asked to stop; then it leaves without them."""
PARTING = 60.0
"""Seconds for the others to come to where they can save together, when one process has failed; a call of a network may
have to end before."""
PARTED = 10**12
"""Number of the first meeting after that."""
BEAT = 1.0
"""Seconds from one sign of life to the next."""


class Meetings:
    """One process's part in the meetings of a run.

    Attributes:
        rank: Index of this process.
        size: Number of processes.
        timeout: Seconds that a process waits for the others.
        asked: Returns the signal that asked this process to stop, if one did.
        known_over: Who ended the run and how, as far as this process knows.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: float, asked: Callable[[], int | None]) -> None:
        self.rank, self.size, self.timeout, self.asked = rank, size, timeout, asked
        self._store = MeetingPlace(store)
        self._count = 0
        self._exchange: tuple[str, float] | None = None
        self.known_over: dict[str, Any] = {}
        self._parting = False
        self._told: dict[str, int] = {}
        self.place("starting")

    def place(self, name: str) -> None:
        """Tell the others what this process does now, should they wait for it."""
        self._store.set(f"place/{self.rank}", name)

    @contextmanager
    def exchange(self, what: str) -> Iterator[None]:
        """Meet; then, inside the block, exchange something.

        Raises:
            EndedElsewhere: If another process has failed.
            ProcessLost: If another process does not come, or its connection breaks.
            Stopped: If this process was asked to stop, and the others do not come.
        """
        start = time.monotonic()
        try:
            self.begin(what)
            yield
        except RuntimeError as error:
            if isinstance(error, VisalignError) or out_of_memory(error):
                raise
            raise self._lost(what, time.monotonic() - start, first_line(error)) from error
        finally:
            self.end()

    @contextmanager
    def explaining(self, what: str) -> Iterator[None]:
        """Say of an error inside the block if it comes of another process that is gone: libraries say it in many ways.

        Raises:
            EndedElsewhere: In place of the error, if another process has failed.
            ProcessLost: In place of the error, if another process gives no sign of life.
        """
        start = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, ProcessLost | EndedElsewhere | Stopped) or out_of_memory(error):
                raise
            self._leave_if_over()
            if not self._silent():
                raise
            raise self._lost(what, time.monotonic() - start) from error

    def begin(self, what: str) -> None:
        """Meet, and say that something is exchanged from now on, in which this process may be blocked.

        Raises:
            OutOfStep: If the first process has come to exchange something else.
        """
        key = (self._count + 1) % 2  # nobody is two meetings ahead of another
        self._store.set(f"exchanges/{key}/{self.rank}", what)
        self.meet(what)
        first = self._store.get(f"exchanges/{key}/0").decode()
        if first != what:
            raise OutOfStep(f"process {self.rank} has come to {what}, process 0 to {first}")
        self._exchange = (what, time.monotonic())

    def end(self) -> None:
        """Say that the exchange is over."""
        self._exchange = None

    def meet(self, what: str) -> None:
        """Wait for the others, as `exchange` does, and exchange nothing."""
        self._count += 1
        key = f"arrived/{self._count}"
        self._leave_if_over()
        self._store.set(f"at/{self.rank}", str(self._count))
        if self._store.add(key, 1) < self.size:
            self._until(lambda: self._store.add(key, 0) >= self.size, what, self._absent)
        self._store.delete_key(f"arrived/{self._count - 1}")  # all have left it, for all are here

    def tell(self, what: str, text: str) -> None:
        """Tell other processes something, without waiting for them."""
        self._store.set(self._numbered(what), text)

    def hear(self, what: str, teller: int, listeners: int) -> str:
        """Wait for what a process tells this one and others, in the order in which it is told; see `meet`.

        In any thread, and whatever else the processes exchange meanwhile.
        """
        key = self._numbered(what)
        self._until(lambda: self._store.check([key]), what, lambda: [teller])
        text = self._store.get(key).decode()
        if self._store.add(f"{key}/heard", 1) == listeners:
            self._store.delete_key(key)
            self._store.delete_key(f"{key}/heard")
        return text

    def _numbered(self, what: str) -> str:
        self._told[what] = self._told.get(what, 0) + 1
        return f"told/{what}/{self._told[what]}"

    def _until(self, there: Callable[[], bool], what: str, absent: Callable[[], Sequence[int]]) -> None:
        """Wait until something is there, for which `absent` processes have to come."""
        start, asked = time.monotonic(), None
        while True:
            now = time.monotonic()
            self._leave_if_over()
            if now - start > self.timeout:
                raise self._lost(what, now - start, who=absent())
            if (number := self.asked()) is not None:
                asked = asked or now
                if now - asked > GRACE:
                    raise self._left(what, number)
            time.sleep(min(PAUSE, (now - start) / 20 + 1e-4))
            if there():
                return

    def claim(self, error: BaseException, stuck: Sequence[int] = ()) -> bool:
        """Tell the others that the run is over; return whether this process is the one that tells the user.

        Where none can be told any more, the one that ended it does, or each one that knows of nobody who did.
        """
        mine = json.dumps({"process": self.rank, "code": exit_code(error), "stuck": list(stuck)})
        try:
            return json.loads(self._store.compare_set("over", "", mine))["process"] == self.rank
        except MeetingPlaceLost:
            return self.known_over.get("process", self.rank) == self.rank

    def leave(self, error: BaseException) -> bool:
        """Leave without having saved, as `claim` does; who waits to be told what was saved waits no longer."""
        with suppress(MeetingPlaceLost):
            if self.rank == 0 and not self._store.check(["saved"]):
                self._store.set("saved", "")
        return self.claim(error)

    def all_part(self) -> bool:
        """Wait for the others to learn that the run is over; return whether all can still exchange something."""
        with suppress(MeetingPlaceLost):
            self._store.add("parting", 1)
            end = time.monotonic() + min(PARTING, self.timeout)
            while self._store.add("parting", 0) < self.size and time.monotonic() < end and not self._silent():
                time.sleep(PAUSE)
            self._parting = self._store.add("parting", 0) >= self.size
        self._count = PARTED  # they were not all in the same meeting when they learned it
        return self._parting

    def settle(self, told: str | None) -> str:
        """Tell the others what the main process saved, or wait to be told; "" if it does not tell.

        Nobody leaves before: a launcher that sees one process end stops the others, in the middle of saving too.

        Args:
            told: What the main process saved, in words; None in the others.
        """
        try:
            return self._settled(told)
        except MeetingPlaceLost:
            return told or ""

    def _settled(self, told: str | None) -> str:
        if told is not None:
            self._store.set("saved", told)
            self._wait(lambda: self._store.add("read", 0) >= self.size - 1, GRACE)
            return told
        hurried = self.asked() is not None or 0 in self._over().get("stuck", ())
        patience = GRACE if hurried else self.timeout
        found = self._wait(lambda: self._store.check(["saved"]), patience)
        self._store.add("read", 1)
        return self._store.get("saved").decode() if found else ""

    def look(self) -> int | None:
        """Give a sign of life, and see whether this process has to be ended from outside.

        Returns:
            The exit code, if it is stuck, or blocked where it hears nothing; why was printed, once for all.
        """
        self._store.add(f"beat/{self.rank}", 1)
        over, now = self._over(), time.monotonic()
        if self.rank in over.get("stuck", ()):
            self._store.add("read", 1)
            return over["code"]
        if self._exchange is None:
            return None
        what, since = self._exchange
        number = self.asked()
        if now - since < GRACE:
            return None
        if "process" in over and not self._parting:
            return over["code"]
        if now - since > self.timeout:
            error: VisalignError = self._lost(what, now - since)
        elif number is not None:
            error = self._left(what, number)
        else:
            return None
        if self.claim(error):
            complain(f"visalign: {error}")
        return error.exit_code

    def outlast(self) -> None:
        """Before this process is ended from outside: what keeps the meeting place waits for the others to read why."""
        with suppress(MeetingPlaceLost):
            if self.rank > 0:
                self._store.add("gone", 1)
            else:
                self._wait(lambda: self._store.add("gone", 0) >= self.size - 1, GRACE)

    def united(self) -> United:
        """Return the context in which what ends this process ends all."""
        return United(self)

    def _wait(self, there: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not there():
            if time.monotonic() > end:
                return False
            time.sleep(PAUSE)
        return True

    def _over(self) -> dict[str, Any]:
        if not self.known_over and self._store.check(["over"]):
            self.known_over = json.loads(self._store.get("over"))
        return self.known_over

    def _leave_if_over(self) -> None:
        if "process" in (over := self._over()) and not self._parting:
            raise EndedElsewhere(over["code"])

    def _left(self, what: str, number: int) -> Stopped:
        stopped = Stopped(f"asked to stop; {self._names(self._absent())} did not come to {what} within {GRACE:g} s")
        stopped.exit_code = 128 + number
        return stopped

    def _lost(self, what: str, waited: float, reason: str | None = None, who: Sequence[int] = ()) -> ProcessLost:
        """Say which processes are waited for, and claim the end of the run."""
        silent = self._silent()
        who = who or self._absent() or silent
        gone = set(who) & set(silent)
        state = (
            "lost: no sign of life comes from it" if gone and gone == set(who) else "stuck or lost" if gone else "stuck"
        )
        error = ProcessLost(
            f"{self._names(who)} is {state}; process {self.rank} has waited {waited:.0f} s, in {what}"
            f"{f' ({reason})' if reason else ''}. See what it was doing; if it is only slow, raise timeout "
            f"(now {self.timeout:g} s)"
        )
        self.claim(error, who)
        return error

    def _absent(self) -> list[int]:
        """Return the processes that have not come to the meeting that this one has come to."""
        there = (f"at/{other}" for other in range(self.size))
        come = [int(self._store.get(key)) >= self._count if self._store.check([key]) else False for key in there]
        return [other for other, has_come in enumerate(come) if not has_come]

    def _silent(self) -> list[int]:
        """Return the processes that give no sign of life."""
        others = [other for other in range(self.size) if other != self.rank]
        before = [self._store.add(f"beat/{other}", 0) for other in others]
        for _ in range(3):  # of others that look at the same time, none is silent
            time.sleep(BEAT)
            self._store.add(f"beat/{self.rank}", 1)
        return [o for o, beats in zip(others, before, strict=True) if self._store.add(f"beat/{o}", 0) == beats]

    def _names(self, processes: Sequence[int]) -> str:
        told = []
        for process in processes:
            key = f"place/{process}"
            place = self._store.get(key).decode() if self._store.check([key]) else "starting"
            told.append(f"process {process} of {self.size} ({place})")
        return " and ".join(told) or "another process"


class United:
    """While it is open, what ends this process ends all, one of them tells the user, and none waits without end."""

    def __init__(self, meetings: Meetings) -> None:
        self._meetings = meetings
        self._closed = threading.Event()
        # It only sleeps and looks: a second thread that computes would take the first one's cores.
        self._watch = threading.Thread(target=self._watching, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._watch.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._watch.join()
        if error is None or self._meetings.leave(error):
            return
        if isinstance(error, VisalignError | RewardError):
            raise EndedElsewhere(exit_code(error)) from None

    def _watching(self) -> None:
        while not self._closed.wait(BEAT):
            try:
                code = self._meetings.look()
            except MeetingPlaceLost as lost:
                if self._closed.wait(GRACE):
                    return
                code = self._meetings.known_over.get("code", ProcessLost.exit_code)
                if not self._meetings.known_over:
                    complain(f"visalign: {lost}")
            if code is not None:
                self._meetings.outlast()
                os._exit(code)  # the thread that could raise an error is blocked


def exit_code(error: BaseException) -> int:
    """Return the exit code of what ends a process."""
    if isinstance(error, VisalignError):
        return error.exit_code
    return VisalignError.exit_code if isinstance(error, RewardError) else 1
