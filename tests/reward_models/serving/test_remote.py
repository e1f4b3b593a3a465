"""The client: what is right comes through unchanged, and nothing else comes through at all."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from reward_models.base import KnownAnswer, Media, RewardError, RewardModel, Rewards, load_reward
from reward_models.combinators.weighted import Weighted, WeightedPart
from reward_models.combinators.win_rate import WinRate
from reward_models.judges.bradley_terry import BradleyTerry
from reward_models.measures.colour import Colour
from reward_models.serving.exchange import Exchange, Patience
from reward_models.serving.known_answers import pack
from reward_models.serving.remote import Remote, _RemoteScorer
from tests.support.served import reply, running, served, speaking

CPU = torch.device("cpu")
LEVELS = torch.randint(0, 256, (7, 2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
MEDIA = Media(LEVELS / 255, fps=8.0)
PROMPTS = [f"prompt {i}" for i in range(7)]
TOKEN = "a-token-of-more-than-16-letters"
LONG = 600.0  # seconds; nothing that answers takes as long, however busy the machine is


@dataclass(frozen=True)
class Everything(RewardModel):
    """A score that depends on all a scorer is given; "bad" cannot be scored, "unknown" has no score."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device):
        return self

    def __call__(self, *, media, prompts):
        if "bad" in prompts:
            raise RewardError("a bad prompt")
        value = media.pixels.mean((1, 2, 3, 4)) + torch.tensor([float(len(p)) for p in prompts])
        if media.source is not None:
            value = value + 100 * media.source.pixels.mean((1, 2, 3, 4))
        value = value + (media.fps or 0.0)
        value[[text == "unknown" for text in prompts]] = torch.nan
        return Rewards(value, {"twice": 2 * value})


def remote(url, **settings):
    return load_reward(Remote(url, **{"attempts": 3, "deadline": LONG, "attempt": LONG, **settings}), device=CPU)


def local(model, media=MEDIA, prompts=PROMPTS, group=None):
    return load_reward(model, device=CPU)(media=media, prompts=prompts, group=group)


def test_a_score_is_the_same_from_afar():
    media = replace(MEDIA, source=Media(LEVELS[:, :1, :, :3] / 255))
    with served(Everything()) as url:
        for pixels in ("uint8", "float32"):
            for rows in (1, 3, 16):
                found, right = (
                    remote(url, pixels=pixels, rows=rows)(media=media, prompts=PROMPTS),
                    local(Everything(), media),
                )
                torch.testing.assert_close(found.value, right.value)
                torch.testing.assert_close(found.parts["twice"], right.parts["twice"])
        torch.testing.assert_close(remote(url)(media=MEDIA, prompts=PROMPTS).value, local(Everything()).value)


def test_groups_stay_whole_and_apart():
    model, group = WinRate(BradleyTerry(Colour(), temperature=0.01)), torch.tensor([4, 9, 4, 9, 4, 9, 1])
    with served(model, rows=2) as url:
        for rows in (1, 3, 16):
            found = remote(url, scope="group", rows=rows)(media=MEDIA, prompts=["x"] * 7, group=group)
            torch.testing.assert_close(found.value, local(model, group=group).value, equal_nan=True)
        with pytest.raises(RewardError, match="of scope group, expected sample: set scope"):
            remote(url)


def test_known_answers_are_asked_for_over_the_wire():
    @dataclass(frozen=True)
    class Swapped(Colour):
        def load(self, *, device):
            return Colour("blue").load(device=device)

    with served(Weighted({"red": WeightedPart(Colour())})) as url:
        remote(url)
    with (
        served(Swapped()) as url,
        pytest.raises(RewardError, match=r"does not give its known answers.*red in red, green"),
    ):
        remote(url)


def test_a_server_that_mixes_rows_is_found_out():
    @dataclass(frozen=True)
    class Mixing(Colour):
        def known_answers(self):
            return (KnownAnswer("any", MEDIA, tuple(PROMPTS)),)

        def load(self, *, device):
            return lambda *, media, prompts: Rewards(media.pixels.mean((1, 2, 3, 4)) - media.pixels.mean())

    with served(Mixing()) as url, pytest.raises(RewardError, match="scores a sample differently among others"):
        remote(url)


@pytest.mark.parametrize("policy", ["error", "exclude"])
def test_samples_the_server_could_not_score(policy):
    prompts = ["", "bad", "unknown", "", "bad", "", ""]
    with served(Everything()) as url:
        scorer = remote(url, on_failure=policy)
        if policy == "error":
            with pytest.raises(RewardError, match="could not score 2 of 7 samples: a bad prompt"):
                scorer(media=MEDIA, prompts=prompts)
        else:
            value = scorer(media=MEDIA, prompts=prompts).value
            assert value.isnan().tolist() == [False, True, True, False, True, False, False]
            right = local(Everything(), MEDIA, [""] * 7).value
            torch.testing.assert_close(value[[0, 3, 5, 6]], right[[0, 3, 5, 6]])
            with pytest.raises(RewardError, match="could not score 7 of 7 samples"):
                scorer(media=MEDIA, prompts=["bad"] * 7)


def test_a_model_that_has_no_score_is_believed():
    with served(Everything()) as url:
        value = remote(url)(media=MEDIA, prompts=["unknown"] + [""] * 6).value
        assert value.isnan().tolist() == [True] + [False] * 6


def test_a_token_opens(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with served(Colour(), token=TOKEN) as url:
        with pytest.raises(RewardError, match=r"refuses access, status 401.*wants a token"):
            remote(url)
        file.chmod(0o644)
        with pytest.raises(RewardError, match=r"others may read the token .*chmod 600"):
            remote(url, token_file=str(file))
        file.chmod(0o600)
        remote(url, token_file=str(file))
        monkeypatch.setenv("VISALIGN_REWARD_TOKEN", TOKEN)
        remote(url)
        monkeypatch.setenv("VISALIGN_REWARD_TOKEN", TOKEN[:-1] + "x")
        with pytest.raises(RewardError, match="401") as error:
            remote(url)
        assert TOKEN[:-1] not in str(error.value)


@pytest.mark.parametrize("content", ["short", "a token with spaces in it", "emoji-emoji-emoji-\N{SNOWMAN}", ""])
def test_what_is_no_token_is_refused(tmp_path, content):
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(RewardError, match="holds no token"):
        Remote("http://127.0.0.1:1", token_file=str(file)).check(())
    with pytest.raises(RewardError, match="cannot be read"):
        Remote("http://127.0.0.1:1", token_file=str(tmp_path / "nowhere")).check(())


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8765", "ftp://host", "http://", "http://host?x=1", "http://host#x", "file:///etc"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(RewardError, match="url is like"):
        Remote(url)


def test_a_password_in_the_address_is_refused_and_not_shown():
    with pytest.raises(RewardError, match="holds a password") as error:
        Remote("http://me:secret@host")
    assert "secret" not in str(error.value)


def test_another_model_than_expected_is_refused():
    with served(Colour()) as url, pytest.raises(RewardError, match=r"serves Colour \w{32}, expected 0123"):
        remote(url, fingerprint="0123")


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with served(Colour()) as url:
        remote(url)


# ---- servers that fail or lie ----------------------------------------------------------------------------------------

FINGERPRINT = "f" * 32


def scorer_of(url, **settings):
    """Return a scorer that has met its server before it went wrong."""
    model = Remote(url, **{"rows": 2, "attempts": 2, "deadline": LONG, "attempt": LONG, **settings})
    patience = Patience(model.deadline, model.attempt, model.attempts)
    return _RemoteScorer(model, Exchange(url, None, 2, patience, "somehow"), FINGERPRINT, 2)


def answer(scores, *, version=1, fingerprint=FINGERPRINT, parts=None, errors=None, identity="ID"):
    errors = [None] * len(scores) if errors is None else errors
    body = {"version": version, "id": identity, "fingerprint": fingerprint, "scores": scores, "parts": parts or {}}
    return json.dumps({**body, "errors": errors}).encode()


def lying(body):
    """Answer with `body`, in which ID stands for the request's own."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        message = await receive()
        sent = message["body"]
        while message.get("more_body"):
            message = await receive()
            sent += message["body"]
        identity = json.loads(json.loads(sent[8 : 8 + int.from_bytes(sent[:8], "little")])["__metadata__"]["request"])[
            "id"
        ]
        told = body.replace(b'"ID"', json.dumps(identity).encode())
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(told)).encode())]}
        )
        await send({"type": "http.response.body", "body": told})

    return app


LIES = {
    "NaN": (answer([1.0, float("nan")]), "scores.1: Input should be a finite number"),
    "Infinity": (answer([1.0, float("inf")]), "scores.1: Input should be a finite number"),
    "overflow": (answer([1.0, 1e39]), "float32 cannot hold"),
    "huge": (answer([1.0, 0.0]).replace(b"0.0", b"1e999"), "scores.1"),
    "too few": (answer([1.0]), "1 scores for 2 samples"),
    "too many": (answer([1.0, 2.0, 3.0]), "3 scores for 2 samples"),
    "strings": (answer(["1.0", "2.0"]), "scores.0"),
    "booleans": (answer([True, False]), "scores.0"),
    "nested": (answer([[1.0], [2.0]]), "scores.0"),
    "no scores": (b'{"version": 1, "id": "ID"}', "fingerprint: Field required"),
    "a list": (b"[1.0, 2.0]", "JSON: "),
    "html": (b"<html><body>504</body></html>", "JSON: "),
    "empty": (b"", "JSON: "),
    "cut off": (answer([1.0, 2.0])[:-5], "JSON: "),
    "deep": (b"[" * 100_000, "JSON: "),
    "not UTF-8": (b"\xff\xfe\x00", "JSON: "),
    "another request": (answer([1.0, 2.0], identity="other"), "the answer to another request"),
    "parts too short": (answer([1.0, 2.0], parts={"a": [1.0]}), "1 a for 2 samples"),
    "NaN in parts": (answer([1.0, 2.0], parts={"a": [1.0, float("nan")]}), "parts.a.1"),
    "unknown field": (answer([1.0, 2.0])[:-1] + b', "x": 1}', "x: Extra inputs"),
    "another version": (answer([1.0, 2.0], version=2), "version: "),
    "another model": (answer([1.0, 2.0], fingerprint="0"), "serves another model than at the start"),
    "endless": (b" " * (17 * 2**20), "more than 16777216 bytes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_an_error_and_never_a_score(lie):
    body, says = LIES[lie]
    with running(lying(body)) as url, pytest.raises(RewardError) as error:
        scorer_of(url)(media=MEDIA[:2], prompts=PROMPTS[:2])
    assert says in str(error.value), error.value


def test_the_liar_tells_the_truth_too():
    with running(lying(answer([1.0, None], parts={"a": [3, 4]}))) as url:
        rewards = scorer_of(url)(media=MEDIA[:2], prompts=PROMPTS[:2])
    assert rewards.value[0] == 1
    assert rewards.value[1].isnan()
    assert rewards.parts["a"].tolist() == [3.0, 4.0]


BROKEN = {
    "reset": (None, {}, "gave no answer in .* 2 attempts"),
    "reset in the body": (reply(answer([1.0, 2.0]), length=10_000), {}, "2 attempts"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", {}, "2 attempts"),
    "500": (reply(b"oops", "500 Internal Server Error"), {}, "2 attempts; the last: status 500 oops"),
    "503": (reply(b"", "503 Service Unavailable", "Retry-After: 0"), {}, "2 attempts; the last: status 503"),
    "429": (reply(b"", "429 Too Many Requests", "Retry-After: 0"), {}, "2 attempts; the last: status 429"),
    "hang": (b"", {"hold": LONG, "attempt": 0.3}, "2 attempts; the last: no whole answer within 0.3 seconds"),
    "hang in the head": (b"HTTP/1.1 200 OK\r\nX: ", {"hold": LONG, "attempt": 0.3}, "no whole answer within 0.3"),
    "hang in the body": (reply(b"{", length=9), {"hold": LONG, "attempt": 0.3}, "no whole answer within 0.3"),
    "400": (reply(b"no\x1b[31m", "400 Bad Request"), {}, r"refuses: status 400 no \[31m"),
    "401": (reply(b"", "401 Unauthorized"), {}, "refuses access, status 401: look at the token"),
    "404": (reply(b"", "404 Not Found"), {}, "refuses: status 404"),
    "packed": (reply(gzip.compress(b"{}"), "200 OK", "Content-Encoding: gzip"), {}, r"packed \(gzip\), which was not"),
    "redirect": (
        reply(b"", "302 Found", "Location: http://elsewhere/"),
        {},
        "redirects to http://elsewhere/; redirects are not",
    ),
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_server_that_breaks_gives_one_clear_error(way):
    script, settings, says = BROKEN[way]
    hold = settings.get("hold", 0.0)
    with speaking(script, hold=hold) as (url, heard):
        scorer = scorer_of(url, **{key: value for key, value in settings.items() if key != "hold"})
        with pytest.raises(RewardError, match=says):
            scorer(media=MEDIA[:2], prompts=PROMPTS[:2])
    if "refuses" in says or "redirects" in says:
        assert len(heard) == 1, "what repeating does not mend is not repeated"


def test_what_may_pass_is_tried_again_so_many_times():
    with speaking(None, reply(b"oops", "502 Bad Gateway")) as (url, heard):
        with pytest.raises(RewardError, match="4 attempts"):
            scorer_of(url, attempts=4)(media=MEDIA[:2], prompts=PROMPTS[:2])
        assert len(heard) == 4


def test_the_deadline_holds_whatever_the_attempts():
    says = r"gave no answer .* no whole answer within (1|0\.\d+) seconds"
    with speaking(b"", hold=LONG) as (url, _), pytest.raises(RewardError, match=says):
        scorer_of(url, attempts=1000, deadline=1.0)(media=MEDIA[:2], prompts=PROMPTS[:2])


def test_the_first_error_ends_the_other_requests_too():
    heard = []

    def counting(app):
        async def counted(scope, receive, send):
            heard.extend([scope["path"]] if scope["type"] == "http" else [])
            await app(scope, receive, send)

        return counted

    with running(counting(lying(answer([1.0], version=2)))) as url, pytest.raises(RewardError, match="1 attempts"):
        scorer_of(url, attempts=1)(media=MEDIA, prompts=PROMPTS)
    assert len(heard) <= 2  # of four pieces, over two connections


def test_requests_without_an_answer_are_left_out_only_where_others_have_one():
    with running(lying(answer([1.0, 2.0]))) as url:
        scorer = scorer_of(url, on_failure="exclude", attempts=1)
        value = scorer(media=MEDIA, prompts=PROMPTS).value  # the last piece is one sample, so two scores are a lie
        torch.testing.assert_close(value, torch.tensor([1.0, 2.0] * 3 + [torch.nan]), equal_nan=True)
        with pytest.raises(RewardError, match="2 scores for 1 samples"):
            scorer(media=MEDIA[:1], prompts=PROMPTS[:1])
    with running(lying(answer([1.0, 2.0], fingerprint="0"))) as url, pytest.raises(RewardError, match="another model"):
        scorer_of(url, on_failure="exclude")(media=MEDIA, prompts=PROMPTS)


def test_retry_after_is_honoured():
    with speaking(reply(b"", "429 Too Many Requests", "Retry-After: 60")) as (url, heard):
        with pytest.raises(RewardError, match="gave no answer"):
            scorer_of(url, attempts=1000, deadline=1.0)(media=MEDIA[:2], prompts=PROMPTS[:2])
        assert len(heard) <= 1  # the second attempt would have come after the deadline


def test_nobody_there():
    with pytest.raises(RewardError, match=r"is the server running\? \(visalign serve-reward NAME\)"):
        remote("http://127.0.0.1:9", attempts=2)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (reply(b"<html>"), "/info is not that of a visalign-reward server"),
        (reply(b'{"protocol": "other"}'), "/info is not that of a visalign-reward server"),
        (
            reply(
                b'{"protocol": "visalign-reward", "version": 2, "model": "x", "scope": "sample", "fingerprint": "x",'
                b' "limits": {"rows": 1}}'
            ),
            "speaks version 2 of visalign-reward, this program version 1",
        ),
    ],
)
def test_a_server_of_another_kind_is_refused_at_the_start(script, says):
    with speaking(script) as (url, _), pytest.raises(RewardError, match=says):
        remote(url, attempts=1)


def test_known_answers_survive_the_wire():
    from reward_models.serving.known_answers import unpack

    media = Media(MEDIA.pixels[:2], source=Media(MEDIA.pixels[:2, :1]))
    told = [
        KnownAnswer("it", media, ("a", "b"), ((-float("inf"), 1.0), (0.0, float("inf"))), True),
        *Colour().known_answers(),
    ]
    for one, other in zip(told, unpack(pack(told)), strict=True):
        assert torch.equal(one.media.pixels, other.media.pixels)
        assert (one.says, one.prompts, one.best_first) == (other.says, other.prompts, other.best_first)
        assert len(one.bands) == len(other.bands)
    assert torch.equal(unpack(pack(told))[0].media.source.pixels, media.source.pixels)
    for file in (b"", b"\0" * 20, b"\xff" * 100, pack(told)[:-100]):
        with pytest.raises(RewardError, match="known answers of the server cannot be read"):
            unpack(file)
