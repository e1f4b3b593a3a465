"""A served model, over a real socket: what is asked, what is read, and every way in which the other side can fail."""

from __future__ import annotations

import base64
import io
import json
import math
import time

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models.base import RewardError
from reward_models.vlms.base import CUE, Question
from reward_models.vlms.endpoint import Endpoint, EndpointReader
from tests.support.chat_server import MODEL, ChatServer, chat, drops, place, serving
from tests.support.ports import free_port

CPU = torch.device("cpu")
LONG = 600.0  # seconds; nothing that answers takes as long, however busy the machine is
RED = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 6)
EXACT = {"rtol": 0, "atol": 1e-6}  # float32 of a float64 log-probability


def reader(server: ChatServer, **more: object) -> EndpointReader:
    given = {"attempts": 2, "timeout": LONG, "deadline": LONG, **more}
    return Endpoint(server.url, MODEL, **given).load(device=CPU)


def questions(count: int) -> list[Question]:
    return [Question((f"Number {row}: ", RED, " good?"), 1.0) for row in range(count)]


def test_all_spellings_are_read():
    with serving(lambda body, n: chat(place(Yes=0.5, _yes=0.1, No=0.2, no=0.05, maybe=0.1))) as server:
        verdicts = reader(server).verdicts(questions(1))
    torch.testing.assert_close(verdicts.yes.exp(), torch.tensor([0.6]), **EXACT)
    torch.testing.assert_close(verdicts.no.exp(), torch.tensor([0.25]), **EXACT)


def test_what_is_asked():
    with serving(lambda body, n: chat(place(yes=0.9, no=0.1))) as server:
        reader(server, extra={"chat_template_kwargs": {"enable_thinking": False}}).verdicts(questions(1))
    body = server.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0, 1)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    text, picture, end = body["messages"][0]["content"]
    assert (text["text"], end["text"]) == ("Number 0: ", " good?")
    head, data = picture["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert seen.shape == (4, 6, 3)
    assert (seen == [255, 0, 0]).all()


def test_a_clip_is_its_frames():
    clip = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    with serving(lambda body, n: chat(place(yes=0.9, no=0.1))) as server:
        reader(server).verdicts([Question(("What? ", clip), 8.0)])
    kinds = [piece["type"] for piece in server.asked[0]["messages"][0]["content"]]
    assert kinds == ["text", "text", "image_url", "image_url", "image_url"]


def test_rows_come_back_in_order():
    def by_number(body, n):
        row = int(body["messages"][0]["content"][0]["text"].split()[1][:-1])
        time.sleep(0.02 * (7 - row))
        return chat(place(yes=0.1 + 0.1 * row, no=0.05))

    with serving(by_number) as server:
        verdicts = reader(server, concurrency=8).verdicts(questions(8))
    torch.testing.assert_close(verdicts.yes.exp(), torch.arange(1, 9) / 10, **EXACT)


def test_a_word_that_is_not_told_has_the_largest_probability_it_can_have():
    """Not 0, or the answer would be a certain yes; no more than the least likely token that is told."""
    with serving(lambda body, n: chat(place(Yes=0.9, maybe=0.04, so=0.01))) as server:
        verdicts = reader(server).verdicts(questions(1))
    torch.testing.assert_close(verdicts.no.exp(), torch.tensor([0.01]), **EXACT)
    with serving(lambda body, n: chat(place(Yes=0.98, maybe=0.015))) as server:
        verdicts = reader(server).verdicts(questions(1))
    torch.testing.assert_close(verdicts.no.exp(), torch.tensor([0.005]), **EXACT)


def test_neither_word_is_no_verdict():
    with serving(lambda body, n: chat(place(The=0.9, picture=0.05))) as server:
        verdicts = reader(server).verdicts(questions(1))
    assert verdicts.yes.isnan().all()
    assert verdicts.no.isnan().all()


def words(text: str) -> list[dict[str, object]]:
    """Return places at which each word was nearly certain."""
    return [place(**{word.replace(" ", "_"): 0.99}) for word in text.split("|")]


def test_the_verdict_follows_the_reasoning():
    answer = chat(*words(f"yes|, but| {CUE[:-1]}|:| "), place(_no=0.7, _yes=0.2), *words("."))
    with serving(lambda body, n: answer) as server:
        verdicts = reader(server).verdicts(questions(1), reasoning=64)
        assert server.asked[0]["max_tokens"] == 64
    torch.testing.assert_close(verdicts.no.exp(), torch.tensor([0.7]), **EXACT)


@pytest.mark.parametrize("text", ["it| is| yes", f"so| {CUE}", "yes"])
def test_reasoning_without_a_verdict(text):
    with serving(lambda body, n: chat(*words(text))) as server:
        assert reader(server).verdicts(questions(1), reasoning=8).yes.isnan().all()


def test_writing():
    with serving(lambda body, n: chat(text=f"<answer>{n}</answer>")) as server:
        written = reader(server, concurrency=1).write(questions(3), tokens=99)
        assert {body["max_tokens"] for body in server.asked} == {99}
    assert written == [f"<answer>{n}</answer>" for n in range(3)]


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    with serving(lambda body, n: chat(place(yes=0.9, no=0.1))) as server:
        asked = reader(server, key_variable="JUDGE_KEY")
        asked.verdicts(questions(1))
        assert server.headers[0]["Authorization"] == "Bearer sesame"
        assert "sesame" not in repr(asked.described)
        monkeypatch.delenv("JUDGE_KEY")
        with pytest.raises(RewardError, match=r"\$JUDGE_KEY, which is empty"):
            reader(server, key_variable="JUDGE_KEY")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(status):
    def once(body, n):
        return (status, b"busy", {}) if n == 0 else chat(place(yes=0.6, no=0.3))

    with serving(once) as server:
        verdicts = reader(server).verdicts(questions(1))
        assert len(server.asked) == 2
    torch.testing.assert_close(verdicts.yes.exp(), torch.tensor([0.6]), **EXACT)


def failure(reply, count: int = 1, **more: object) -> str:
    with serving(reply) as server, pytest.raises(RewardError) as caught:
        reader(server, **more).verdicts(questions(count))
    return str(caught.value)


def body(value: object) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {}


LIES = {
    "html": ((200, b"<html>", {}), "not JSON"),
    "empty": ((200, b"", {}), "not JSON"),
    "no choices": (body({"choices": []}), "no single choice"),
    "two choices": (body({"choices": [{}, {}]}), "no single choice"),
    "a list": (body([1]), "no single choice"),
    "no log-probabilities": (body({"choices": [{"message": {"content": "yes"}, "logprobs": None}]}), "--max-logprobs"),
    "no places": (chat(), "--max-logprobs"),
    "text for a number": (chat({"token": "yes", "top_logprobs": [{"token": "yes", "logprob": "high"}]}), "be read"),
    "nothing told": (chat({"token": "yes", "top_logprobs": []}), "not log-probabilities"),
    "not a number": (chat({"token": "yes", "top_logprobs": [{"token": "yes", "logprob": math.nan}]}), "these are no"),
    "above one": (chat({"token": "yes", "top_logprobs": [{"token": "yes", "logprob": 0.7}]}), "these are no"),
    "too much in all": (chat(place(yes=0.9, no=0.9)), "more than 1"),
    "after sampling": (
        chat({"top_logprobs": [{"token": "yes", "logprob": 0.0}, {"token": "no", "logprob": -9999.0}]}),
        "raw_logprobs",
    ),
    "in drops": ((200, drops(0.01), {}), "no whole answer within 0.2 seconds"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_errors(name):
    reply, says = LIES[name]
    said = failure(lambda body, n: reply, timeout=0.2 if name == "in drops" else LONG)
    assert says in said
    assert f"{MODEL} at http://127.0.0.1" in said


def test_a_redirect_is_not_followed():
    said = failure(lambda body, n: (307, b"", {"Location": "http://elsewhere.example/v1"}))
    assert "redirects to http://elsewhere.example/v1" in said


@pytest.mark.parametrize(
    ("status", "says"), [(401, "refuses access"), (400, "refuses: status 400 too long"), (404, "404")]
)
def test_what_will_not_pass_is_not_tried_again(status, says):
    with serving(lambda body, n: (status, b"too long", {})) as server:
        asked = reader(server)
        with pytest.raises(RewardError, match=says):
            asked.verdicts(questions(1))
        assert len(server.asked) == 1


def test_a_slow_endpoint_is_not_waited_for():
    def slow(body, n):
        time.sleep(1.0)
        return chat(place(yes=0.9, no=0.1))

    assert "gave no answer" in failure(slow, timeout=0.1)
    assert "gave no answer" in failure(slow, deadline=0.1)


def test_an_endpoint_that_is_down():
    with pytest.raises(RewardError, match=r"gave no answer .* is the server running\? \(vllm serve MODEL"):
        Endpoint(f"http://127.0.0.1:{free_port()}/v1", MODEL, attempts=2).load(device=CPU)


def test_an_endpoint_that_serves_another_model():
    with (
        serving(lambda body, n: chat()) as server,
        pytest.raises(RewardError, match=r"does not serve other; it serves \['judge'\]"),
    ):
        Endpoint(server.url, "other").load(device=CPU)


def test_an_address_without_models():
    with (
        serving(lambda body, n: chat(), models=(404, b"nothing here", {})) as server,
        pytest.raises(RewardError, match="404"),
    ):
        reader(server)


def test_failures_can_be_left_out():
    def half(body, n):
        return (500, b"no", {}) if "Number 1" in str(body) else chat(place(yes=0.6, no=0.3))

    with serving(half) as server:
        asked = reader(server, on_failure="exclude")
        with pytest.warns(UserWarning, match="1 of 3 samples have no score"):
            verdicts = asked.verdicts(questions(3))
        assert verdicts.yes.isnan().tolist() == [False, True, False]
        with pytest.warns(UserWarning, match="1 of 3"):
            assert asked.write(questions(3), tokens=4) == ["yes", "", "yes"]


def test_when_all_fail_nothing_is_left_out():
    assert "gave no answer" in failure(lambda body, n: (500, b"no", {}), count=2, on_failure="exclude")


@pytest.mark.parametrize("url", ["judge", "ftp://host/v1", "http://user:secret@host/v1", "http://", "http://[::"])
def test_addresses_that_are_none(url):
    with pytest.raises(RewardError, match="url"):
        Endpoint(url, MODEL)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"timeout": 0.0}, {"concurrency": 0}, {"side": 0}])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(RewardError, match="at least 1"):
        Endpoint("http://127.0.0.1/v1", MODEL, **wrong)
