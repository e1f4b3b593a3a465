"""Processes that meet: what ends one ends all with one message, and nobody waits without end.

Threads stand in for processes here, each with its own part in the meetings; tests/faults/test_several_processes.py has
real ones.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import DistNetworkError, HashStore

from alignment.errors import EndedElsewhere, NumericsError, ProcessLost, Stopped, VisalignError
from alignment.meeting_place import MeetingPlaceLost
from alignment.meetings import Meetings
from reward_models.base import RewardError

FOREVER = 600.0  # nothing here waits for it
SOON = 0.5


def nobody() -> None:
    return None


def meetings(size: int, timeout: float = FOREVER, asked: Callable[[], int | None] = nobody) -> list[Meetings]:
    store = HashStore()
    return [Meetings(store, rank, size, timeout, asked) for rank in range(size)]


def ended(work: Callable[[], object]) -> Exception | None:
    try:
        work()
    except (VisalignError, RewardError, ZeroDivisionError) as error:
        return error
    return None


def together(*work: Callable[[], object]) -> list[Exception | None]:
    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(ended, work))


def exchanging(one: Meetings, times: int, done: list[int]) -> None:
    for _ in range(times):
        with one.exchange("adding"):
            done.append(one.rank)


def test_all_come_to_every_exchange() -> None:
    done: list[int] = []
    three = meetings(3)
    assert together(*(lambda one=one: exchanging(one, 50, done) for one in three)) == [None] * 3
    assert all(sorted(done[3 * i : 3 * i + 3]) == [0, 1, 2] for i in range(50))


def test_what_is_told_is_heard_in_its_order_by_all() -> None:
    heard: dict[int, list[str]] = {1: [], 2: []}
    three = meetings(3)

    def tell() -> None:
        for number in range(20):
            three[0].tell("scores", str(number))

    def hear(rank: int) -> None:
        heard[rank] += [three[rank].hear("scores", 0, 2) for _ in range(20)]

    assert together(tell, lambda: hear(1), lambda: hear(2)) == [None] * 3
    assert heard == {rank: [str(number) for number in range(20)] for rank in (1, 2)}


def test_who_waits_to_be_told_learns_that_the_teller_failed() -> None:
    two = meetings(2)

    def fail() -> None:
        with two[0].united():
            raise RewardError("the judge is out")

    told, other = together(fail, lambda: two[1].hear("scores", 0, 1))
    assert isinstance(told, RewardError)
    assert isinstance(other, EndedElsewhere)


def test_who_is_told_nothing_names_the_teller() -> None:
    error = ended(lambda: meetings(2, SOON)[1].hear("scores", 0, 1))
    assert isinstance(error, ProcessLost)
    assert "process 0 of 2 (starting)" in str(error)


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("error", [RewardError("the judge is out"), NumericsError("not finite")])
def test_a_failure_ends_the_others_at_their_next_meeting(failing: int, error: Exception) -> None:
    two = meetings(2)

    def fail() -> None:
        with two[failing].united():
            raise error

    def come() -> None:
        with two[1 - failing].united():
            two[1 - failing].meet("adding")

    told, other = together(fail, come)
    assert told is error
    assert isinstance(other, EndedElsewhere)
    assert str(other) == ""
    assert other.exit_code == (5 if isinstance(error, NumericsError) else 2)


def test_of_two_failures_one_is_told() -> None:
    def fail(one: Meetings) -> None:
        with one.united():
            raise RewardError("the judge is out")

    found = together(*(lambda one=one: fail(one) for one in meetings(2)))
    assert sorted(str(error) for error in found) == ["", "the judge is out"]
    assert {error.exit_code for error in found if isinstance(error, EndedElsewhere)} == {2}


def test_a_fault_of_the_program_is_never_hidden() -> None:
    def fail(one: Meetings) -> None:
        with one.united():
            raise ZeroDivisionError

    assert [type(error) for error in together(*(lambda one=one: fail(one) for one in meetings(2)))] == [
        ZeroDivisionError
    ] * 2


def test_one_waits_no_longer_than_the_timeout_and_says_for_whom() -> None:
    two = meetings(2, timeout=SOON)
    two[1].place("sampling, step 3")
    error = ended(lambda: two[0].meet("adding up gradients"))
    assert isinstance(error, ProcessLost)
    assert error.exit_code == 7
    assert "process 1 of 2 (sampling, step 3) is lost: no sign of life comes from it" in str(error)
    assert "in adding up gradients" in str(error)
    assert "raise timeout (now 0.5 s)" in str(error)
    assert two[0].claim(error)
    assert two[1].look() == 7  # what watches the stuck one ends it
    assert isinstance(ended(lambda: two[1].meet("adding up gradients")), EndedElsewhere)


def test_a_process_that_lives_and_does_not_come_is_stuck() -> None:
    two, over = meetings(2, timeout=SOON), threading.Event()

    def live() -> None:
        while not over.wait(0.1):
            two[1].look()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(live)
        error = ended(lambda: two[0].meet("adding up gradients"))
        over.set()
    assert "process 1 of 2 (starting) is stuck; process 0 has waited" in str(error)


def test_one_that_was_asked_to_stop_does_not_wait_for_the_others() -> None:
    two = meetings(2, asked=lambda: signal.SIGTERM)
    error = ended(lambda: two[0].meet("adding"))
    assert isinstance(error, Stopped)
    assert error.exit_code == 128 + signal.SIGTERM
    assert "asked to stop; process 1 of 2 (starting) did not come to adding within 5 s" in str(error)


def test_a_broken_connection_is_told_as_a_process_that_was_lost() -> None:
    two = meetings(2)

    def broken() -> None:
        with two[0].exchange("adding"):
            raise RuntimeError("Connection closed by peer [127.0.0.1]:1\nand more")

    error, _ = together(broken, lambda: two[1].meet("adding"))
    assert isinstance(error, ProcessLost)
    assert "process 1 of 2 (starting) is lost" in str(error)
    assert "(Connection closed by peer [127.0.0.1]:1)" in str(error)


def test_what_the_main_process_saved_is_told_by_the_one_that_failed() -> None:
    two = meetings(2)

    def fail() -> str:
        two[1].claim(RewardError("out"))
        return two[1].settle(None)

    with ThreadPoolExecutor(2) as pool:
        told = pool.submit(fail)
        assert two[0].settle("checkpoint-4 is saved") == "checkpoint-4 is saved"
        assert told.result() == "checkpoint-4 is saved"


def test_nobody_waits_for_a_main_process_that_leaves_without_saving() -> None:
    two = meetings(2)

    def leave() -> None:
        with two[0].united():
            raise NumericsError("not finite")

    with ThreadPoolExecutor(2) as pool:
        told = pool.submit(two[1].settle, None)
        pool.submit(ended, leave)
        assert told.result() == ""


class Losable(HashStore):
    """A store that is lost, as one is with the process that keeps it."""

    lost = False

    def check(self, keys: list[str]) -> bool:
        return self._there() and super().check(keys)

    def add(self, key: str, amount: int) -> int:
        return self._there() and super().add(key, amount)

    def set(self, key: str, value: str) -> None:
        self._there()
        super().set(key, value)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        self._there()
        return super().compare_set(key, expected, desired)

    def _there(self) -> bool:
        if self.lost:
            raise DistNetworkError("Broken pipe")
        return True


@pytest.mark.parametrize("known", [False, True])
def test_the_loss_of_the_meeting_place_is_told_by_whoever_knows_of_nobody_else(known: bool) -> None:
    store = Losable()
    first, one = (Meetings(store, rank, 2, FOREVER, nobody) for rank in range(2))
    if known:
        assert first.claim(NumericsError("loss"))
        assert isinstance(ended(lambda: one.meet("adding")), EndedElsewhere)
    store.lost = True
    lost = ended(lambda: exchanging(one, 1, []))
    assert isinstance(lost, MeetingPlaceLost)
    assert "the process at which all others meet is lost" in str(lost)
    assert one.claim(ProcessLost("")) != known
    assert not one.all_part()
    assert one.settle(None) == ""
    assert one.settle("checkpoint-2 is saved") == "checkpoint-2 is saved"

    def leaving() -> None:
        with one.united():
            raise ProcessLost("gone")

    assert type(ended(leaving)) is (EndedElsewhere if known else ProcessLost)


def test_who_ended_the_run_tells_the_user_though_the_first_process_left_before() -> None:
    store = Losable()
    first, one = (Meetings(store, rank, 2, FOREVER, nobody) for rank in range(2))
    assert one.claim(RewardError("the judge is out"))
    assert together(lambda: first.settle("checkpoint-2 is saved"), lambda: one.settle(None)) == [None, None]
    store.lost = True

    def leaving() -> None:
        with one.united():
            raise RewardError("the judge is out")

    assert type(ended(leaving)) is RewardError
