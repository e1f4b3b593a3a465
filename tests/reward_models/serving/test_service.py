"""What many ask at once: scored together, failing apart, and never waited for in vain."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import dataclass
from typing import ClassVar

import httpx
import pytest
import torch

from reward_models.base import RewardError, RewardModel, Rewards, load_reward
from reward_models.combinators.win_rate import WinRate
from reward_models.judges.bradley_terry import BradleyTerry
from reward_models.measures.colour import Colour
from reward_models.serving.service import Service
from reward_models.serving.wire import ParsedQuestion, write
from tests.reward_models.test_foreign import module
from tests.support.questions import post
from tests.support.served import served

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Held(RewardModel):
    """Waits until it is let go; "bad" fails, "exits", "leaves", "interrupts" would end more than that, "ours" does."""

    differentiable: ClassVar[bool] = False
    go: ClassVar[threading.Event] = threading.Event()
    calls: ClassVar[list[int]] = []

    def load(self, *, device):
        return self

    def __call__(self, *, media, prompts):
        self.calls.append(len(media))
        self.go.wait(600)
        if "bad" in prompts:
            raise RewardError("a bad prompt")
        if "exits" in prompts:
            raise SystemExit(7)
        if "leaves" in prompts:
            raise GeneratorExit
        if "interrupts" in prompts:
            raise KeyboardInterrupt
        if "ours" in prompts:
            module("reward_models.broken", "def run():\n    raise TypeError('a bug')\n")["run"]()
        return Rewards(media.pixels.mean((1, 2, 3, 4)), {"twice": media.pixels.sum((1, 2, 3, 4))})


@pytest.fixture
def held():
    Held.go.clear()
    Held.calls.clear()
    yield Held()
    Held.go.set()


def question(*prompts, side=8, group=None):
    pixels = torch.rand(len(prompts), 1, 3, side, side, generator=torch.Generator().manual_seed(len(prompts)))
    return ParsedQuestion("id", prompts, None, pixels, group=group)


def value(asked):
    return asked.pixels.mean((1, 2, 3, 4))


def test_questions_that_wait_are_scored_together(held):
    service = Service(load_reward(held, device=CPU), rows=4, linger=0.0)
    asked = [question("a"), question("b"), question("c", "d"), question("e"), question("f", side=16), question("g")]
    answers = [service.ask(one) for one in asked]
    held.go.set()
    for one, answer in zip(asked, answers, strict=True):
        torch.testing.assert_close(answer.result(600).rewards.value, value(one))
    assert sum(held.calls) == 7
    assert max(held.calls) > 1
    assert set(held.calls) <= {1, 2, 3, 4}
    service.close()


def test_one_bad_question_costs_the_others_nothing(held):
    service = Service(load_reward(held, device=CPU), rows=16, linger=0.0)
    asked = [question("first"), question("a", "b"), question("c", "bad", "d"), question("e")]
    answers = [service.ask(one) for one in asked]
    held.go.set()
    verdicts = [answer.result(600) for answer in answers]
    for one, verdict in zip(asked, verdicts, strict=True):
        right = value(one)
        if "bad" in one.prompts:
            right[1] = torch.nan
            assert verdict.errors == (None, "a bad prompt", None)
        else:
            assert verdict.errors == (None,) * len(one)
        torch.testing.assert_close(verdict.rewards.value, right, equal_nan=True)
    service.close()


def test_a_large_question_is_scored_in_pieces(held):
    held.go.set()
    service = Service(load_reward(held, device=CPU), rows=4)
    asked = question(*"abcdefghij")
    torch.testing.assert_close(service.ask(asked).result(600).rewards.value, value(asked))
    assert held.calls == [4, 4, 2]
    service.close()


def test_questions_of_many_pixels_are_not_put_together(held):
    service = Service(load_reward(held, device=CPU), rows=16, linger=0.0, pixels=100)
    asked = [question("a", "b"), *(question("c") for _ in range(4))]
    answers = [service.ask(one) for one in asked]
    held.go.set()
    for one, answer in zip(asked, answers, strict=True):
        torch.testing.assert_close(answer.result(600).rewards.value, value(one))
    assert held.calls == [2, 1, 1, 1, 1]  # 64 pixels each; what is more than the limit by itself is scored alone
    service.close()


def test_a_question_that_nobody_waits_for_leaves_its_room(held):
    service = Service(load_reward(held, device=CPU), rows=1, linger=0.0)
    first, left = service.ask(question("a")), question("b")
    pixels = weakref.ref(left.pixels)
    answer = service.ask(left)
    answer.cancel()
    del left, answer
    gc.collect()
    assert pixels() is None
    held.go.set()
    assert first.result(600).errors == (None,)
    service.close()


def test_groups_of_two_questions_are_kept_apart():
    model = WinRate(BradleyTerry(Colour(), temperature=0.01))
    service = Service(load_reward(model, device=CPU), rows=16, linger=0.2)
    asked = [question(*"xxx", group=torch.tensor([5, 5, 5])), question(*"xxxx", group=torch.tensor([5, 5, 6, 6]))]
    answers = [service.ask(one) for one in asked]
    for one, answer in zip(asked, answers, strict=True):
        right = load_reward(model, device=CPU)(media=one.media, prompts=one.prompts, group=one.group).value
        torch.testing.assert_close(answer.result(600).rewards.value, right)
    service.close()


def test_more_than_the_queue_holds_is_told_to_come_back(held):
    with served(held, queue=2, rows=1) as url:
        found: list[httpx.Response] = []
        asking = [threading.Thread(target=lambda: found.append(post(url))) for _ in range(8)]
        asking[0].start()
        while not held.calls:
            threading.Event().wait(0.01)
        for thread in asking[1:]:
            thread.start()
        while len(found) < 5:  # one is being scored, two wait
            threading.Event().wait(0.01)
        assert {answer.status_code for answer in found} == {429}
        assert all(1 <= int(answer.headers["retry-after"]) <= 30 for answer in found)
        held.go.set()
        for thread in asking:
            thread.join()
        assert sorted(answer.status_code for answer in found) == [200] * 3 + [429] * 5


def test_who_waits_too_long_is_told(held):
    with served(held, patience=0.3) as url:
        for status, go in ((504, False), (200, True)):
            if go:
                held.go.set()
            for _ in range(100):  # a busy machine may not even have read the question in time
                if (answer := post(url)).status_code == status:
                    break
                assert answer.status_code in (408, 504)
            else:
                pytest.fail(f"no answer of status {status}")


def test_a_server_that_is_asked_to_leave_answers_first(held):
    found: list[httpx.Response] = []
    with served(held) as url:
        asking = threading.Thread(target=lambda: found.append(post(url)))
        asking.start()
        while not held.calls:
            threading.Event().wait(0.01)
        threading.Timer(0.3, held.go.set).start()
    asking.join()
    assert found[0].status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_breaks_down_leaves_nobody_waiting(held):
    held.go.set()
    with served(held) as url:
        body = write(question("ours"))
        assert post(url, body).status_code == 500
        assert post(url).status_code == 503
        assert httpx.get(f"{url}/health", timeout=None).status_code == 503


@pytest.mark.parametrize("prompt", ["exits", "leaves", "interrupts"])
def test_a_scorer_that_ends_the_program_ends_one_question(held, prompt):
    held.go.set()
    with served(held) as url:
        bad, ends = (post(url, write(question(said))) for said in ("bad", prompt))
        assert ends.status_code == bad.status_code
        assert ends.json()["scores"] == bad.json()["scores"]
        assert post(url).status_code == 200


def test_pixels_for_which_there_is_no_memory_cost_one_question(held):
    """Levels take a quarter of what a model is given; these take next to nothing, and would take 12 petabytes."""
    held.go.set()
    service = Service(load_reward(held, device=CPU), linger=0.0, pixels=10**18)
    pixels = torch.zeros(1, 1, 3, 1, 1, dtype=torch.uint8).expand(2, 1, 3, 2**24, 2**25)
    asked = [ParsedQuestion("id", ("a", "b"), None, pixels), question("c"), question("d")]
    answers = [service.ask(one) for one in asked]
    refused, *others = (answer.result(60) for answer in answers)
    assert refused.rewards.value.isnan().all()
    assert all("can't allocate memory" in str(error) for error in refused.errors)
    for one, other in zip(asked[1:], others, strict=True):
        torch.testing.assert_close(other.rewards.value, value(one))
    service.close()


def test_models_that_compare_need_groups():
    with served(WinRate(BradleyTerry(Colour()))) as url:
        answer = post(url)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "group")
