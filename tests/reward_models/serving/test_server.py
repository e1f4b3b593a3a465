"""The server: who may ask, how much, what they are told, and that nothing anybody sends brings it down."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import struct
import threading
import zlib
from dataclasses import dataclass, field

import httpx
import pytest
import torch

from reward_models.base import load_reward
from reward_models.loading.fingerprint import fingerprint
from reward_models.measures.colour import Colour
from reward_models.serving.server import Settings, application
from reward_models.serving.service import Service
from reward_models.serving.wire import DECODING, JSON, KEPT, TENSORS, Limits
from tests.support.questions import LEVELS, RIGHT, SMALL, drawing, picture, post, tensors
from tests.support.served import served

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Waiting(Colour):
    """Says that it was asked, and answers when it may."""

    asked: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def known_answers(self):
        return ()

    def load(self, *, device):
        scorer = super().load(device=device)

        def wait(*, media, prompts):
            self.asked.set()
            assert self.go.wait(600)
            return scorer(media=media, prompts=prompts)

        return wait


def get(url, path, **headers):
    return httpx.get(url + path, headers=headers, timeout=None, trust_env=False)


def test_scores_by_hand_and_by_machine():
    with served(Colour()) as url:
        for kind, body in ((TENSORS, tensors()), (JSON, drawing()), ("Application/JSON; charset=utf-8", drawing())):
            answer = post(url, body, kind).json()
            assert answer["scores"] == RIGHT
            assert (answer["version"], answer["id"], answer["errors"], answer["parts"]) == (1, "one", [None] * 3, {})
        told = get(url, "/info").json()
        assert answer["fingerprint"] == told["fingerprint"] == fingerprint(load_reward(Colour(), device=CPU))
        assert (told["protocol"], told["version"], told["model"], told["scope"]) == (
            "visalign-reward",
            1,
            "Colour",
            "sample",
        )
        assert get(url, "/health").json() == {"status": "ok"}


def test_nothing_else_is_offered():
    with served(Colour()) as url:
        for path in ("/", "/docs", "/openapi.json", "/redoc", "/v1/score", "/v1/../etc/passwd"):
            assert get(url, path).status_code in (404, 405)


def test_a_token_guards_all_but_health():
    with served(Colour(), token="a-token-of-more-than-16-letters") as url:
        for given in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic a-token-of-more-than-16-letters"},
        ):
            assert post(url, **given).status_code == 401
            for path in ("/info", "/v1/known-answers"):
                assert get(url, path, **given).status_code == 401
        assert get(url, "/health").status_code == 200
        assert post(url, Authorization="Bearer a-token-of-more-than-16-letters").status_code == 200


def test_bodies_are_limited_however_they_come():
    def chunks():
        for _ in range(100):
            yield bytes(2_000)

    with served(Colour(), limits=SMALL) as url:
        for body in (bytes(200_000), chunks()):
            try:
                answer = post(url, body)
            except httpx.TransportError:
                continue  # closed while it was still being sent to
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "too_large"
        assert post(url, gzip_bomb := zlib.compress(bytes(10**6)), **{"Content-Encoding": "gzip"}).status_code == 415
        assert len(gzip_bomb) < 2000
        assert post(url).json()["scores"] == RIGHT


def test_a_question_that_never_ends_is_given_up():
    with served(Colour(), patience=0.3) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=600) as connection:
            head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: {TENSORS}\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall(head.encode() + b"12345")
            assert b" 408 " in connection.recv(1000)
        assert get(url, "/health").status_code == 200


def test_room_is_held_while_a_body_is_read():
    with served(Colour(), held=10_000) as url:
        assert post(url, bytes(20_000)).status_code == 413
        assert post(url).status_code == 200


def flat(side, cut=0):
    """Return a question about one picture of one colour: a few hundred bytes, however many pixels."""
    file = base64.b64decode(picture(torch.zeros(3, side, side, dtype=torch.uint8)))
    media = [[base64.b64encode(file[: len(file) - cut]).decode()]]
    return json.dumps({"version": 1, "id": "one", "prompts": ["a"], "media": media}).encode()


UNPACKED = (KEPT + DECODING) * 500 * 500
"""Bytes that a picture of 500 x 500 takes while it is decoded."""


def test_pictures_are_counted_before_they_are_decoded():
    assert len(flat(500)) < UNPACKED / 1000
    with served(Colour(), held=UNPACKED) as url:
        answer = post(url, flat(500, cut=100), JSON)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert f"this server holds {UNPACKED} in all" in answer.json()["error"]["message"]
    with served(Colour(), held=2 * UNPACKED) as url:
        assert post(url, flat(500, cut=100), JSON).status_code == 422  # it was decoded, and is not whole
        assert post(url, flat(500), JSON).status_code == 200


@pytest.mark.parametrize("file", ["", "A", "AAAA", "\uf64d", "AAA\u00e9"])
def test_what_is_no_picture_is_the_askers_mistake(file):
    question = {"version": 1, "id": "one", "prompts": ["a"], "media": [[file]]}
    with served(Colour()) as url:
        answer = post(url, json.dumps(question).encode(), JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "media")


def test_pictures_of_all_questions_together_are_counted():
    waiting = Waiting()
    found = []
    with served(waiting, held=2 * UNPACKED) as url:
        asking = threading.Thread(target=lambda: found.append(post(url, flat(500), JSON)))
        asking.start()
        assert waiting.asked.wait(600)
        for _ in range(32):
            answer = post(url, flat(500), JSON)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")
            assert answer.headers["retry-after"] == "1"
        waiting.go.set()
        asking.join()
        assert [answer.status_code for answer in found] == [200]
        assert post(url, flat(500), JSON).status_code == 200  # the room was given back


# ---- anything at all -------------------------------------------------------------------------------------------------

FORMS = ((TENSORS, tensors()), (JSON, drawing()), (TENSORS, tensors(group=torch.tensor([1, 1, 2]), source=LEVELS)))
TOKENS = (
    b"null",
    b"NaN",
    b"-1",
    b"1e999",
    b"[]",
    b"{}",
    b'"',
    b"\\ud800",
    b"\0",
    b"\xff",
    b"18446744073709551616",
    b"F64",
)


def spoilt(chance: random.Random) -> tuple[str, bytes]:
    """Return a question with something wrong, or nothing."""
    kind, body = chance.choice(FORMS)
    data = bytearray(body)
    for _ in range(chance.randrange(1, 4)):
        where = chance.randrange(len(data)) if data else 0
        header = min(len(data), 500)
        match chance.randrange(7):
            case 0:
                data[where:] = b""
            case 1 if data:
                data[where] ^= 1 << chance.randrange(8)
            case 2 if header:
                data[chance.randrange(header)] = chance.randrange(256)
            case 3:
                at = chance.randrange(header + 1)
                data[at:at] = chance.choice(TOKENS)
            case 4:
                at = chance.randrange(header + 1)
                data[at : at + chance.randrange(12)] = chance.choice(TOKENS)
            case 5:
                data[:8] = struct.pack("<Q", chance.choice((0, 1, len(data), 2**31, 2**63, chance.randrange(1000))))
            case _:
                data += chance.randbytes(chance.randrange(20))
    return (kind if chance.random() < 0.95 else chance.choice((TENSORS, JSON, ""))), bytes(data)


def storm(count: int) -> dict[int, int]:
    """Send so many spoilt questions and return how often each status came back."""
    service = Service(load_reward(Colour(), device=CPU), linger=0.0)
    app = application(service, Settings("f", limits=Limits(total=10**5)))
    statuses: dict[int, int] = {}

    async def run() -> list[float]:
        chance = random.Random(count)
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for _ in range(count):
                kind, body = spoilt(chance)
                answer = await client.post("/v1/score", content=body, headers={"Content-Type": kind})
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                assert answer.json()["version"] == 1
            answer = await client.post("/v1/score", content=tensors(), headers={"Content-Type": TENSORS})
            return answer.json()["scores"]

    assert asyncio.run(run()) == RIGHT
    service.close()
    return statuses


def test_spoilt_questions_do_not_bring_it_down():
    statuses = storm(500)
    assert set(statuses) <= {200, 400, 413, 415, 422}
    assert statuses[400] > 100


@pytest.mark.long
def test_ten_thousand_spoilt_questions_do_not_bring_it_down():
    statuses = storm(10_000)
    assert set(statuses) <= {200, 400, 413, 415, 422}
