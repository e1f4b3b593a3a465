"""A reward server that fails now and then, is slow, lies, or goes away: no wrong score, none lost, no step lost."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from reward_models.base import Media, RewardModel, Rewards, load_reward
from reward_models.serving.remote import Remote
from tests.support.runs import left_by, prepared_for_the_toy, train
from tests.support.served import Application, Message, Receive, Send, reply, served, speaking

FAULTS = ("drop", "delay", "500", "garbage", "NaN", "wrong length")
FAULTY = 0.05
CLIENTS = 8
MEMORY = 32 * 2**20  # growth that the allocator is allowed; a leak of one request's pixels each would be far above


@dataclass(frozen=True)
class Position(RewardModel):
    """A score that tells every sample from every other, by its pixels and its prompt."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device: torch.device) -> Position:
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        return Rewards(media.pixels.sum((1, 2, 3, 4)) + torch.tensor([float(text) for text in prompts]))


class Faulty:
    """Spoils answers at random, each way about equally often, and counts."""

    def __init__(self, app: Application, seed: int) -> None:
        self.app, self.chance, self.done = app, random.Random(seed), Counter[str]()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/score" or self.chance.random() >= FAULTY:
            await self.app(scope, receive, send)
            return
        fault = self.chance.choice(FAULTS)
        self.done[fault] += 1
        if fault == "delay":
            await asyncio.sleep(self.chance.uniform(0.0, 0.2))
            await self.app(scope, receive, send)
            return
        told: list[Message] = []

        async def keep(message: Message) -> None:
            told.append(message)

        await self.app(scope, receive, keep)
        body = b"".join(message.get("body", b"") for message in told)
        await self._spoil(fault, body, send)

    async def _spoil(self, fault: str, body: bytes, send: Send) -> None:
        status, length = 200, None
        match fault:
            case "drop":
                body, length = body[: len(body) // 2], len(body)  # the connection is closed in the middle
            case "500":
                status, body = 500, b"Internal Server Error"
            case "garbage":
                body = self.chance.randbytes(len(body))
            case "NaN":
                answer = json.loads(body)
                answer["scores"][0] = float("nan")
                body = json.dumps(answer).encode()
            case "wrong length":
                answer = json.loads(body)
                answer["scores"] = answer["scores"][1:] if self.chance.random() < 0.5 else [0.0, *answer["scores"]]
                body = json.dumps(answer).encode()
            case _:
                raise AssertionError(fault)
        headers = [(b"content-length", str(len(body) if length is None else length).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def storm(requests: int) -> Counter[str]:
    """Ask so many questions from eight clients at once, and return the faults that were injected."""
    faulty: list[Faulty] = []

    def wrapped(app: Application) -> Application:
        faulty.append(Faulty(app, seed=requests))
        return faulty[0]

    wrong, lost, done = [], [], []
    with served(Position(), wrapped) as url:

        def ask(client: int) -> None:
            scorer = load_reward(
                Remote(url, attempt=600.0, deadline=3600.0, rows=2, connections=1), device=torch.device("cpu")
            )
            generator = torch.Generator().manual_seed(client)
            for number in range(requests // CLIENTS):
                levels = torch.randint(0, 256, (2, 1, 3, 16, 16), generator=generator)
                media, texts = Media(levels / 255), [str(client), str(number)]
                found = scorer(media=media, prompts=texts).value
                right = media.pixels.sum((1, 2, 3, 4)) + torch.tensor([float(client), float(number)])
                (done if torch.allclose(found, right, rtol=1e-5) else wrong).append((client, number))

        def counting(client: int) -> None:
            before = len(done)
            try:
                ask(client)
            finally:
                lost.extend([client] if len(done) == before else [])

        threads = [threading.Thread(target=counting, args=(client,)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert not lost
    assert len(done) == len(set(done)) == requests // CLIENTS * CLIENTS
    return faulty[0].done


def test_faults_cost_no_score() -> None:
    injected = storm(400)
    assert sum(injected.values()) > 5


def test_faults_cost_no_memory() -> None:
    keeps(requests=800)


@pytest.mark.long
def test_ten_thousand_requests_with_faults_cost_neither() -> None:
    injected = keeps(requests=10_000)
    assert set(injected) == set(FAULTS)
    assert sum(injected.values()) > 300


def keeps(requests: int) -> Counter[str]:
    storm(400)  # what imports and pools take is taken now
    before = resident()
    injected = storm(requests)
    assert resident() - before < MEMORY
    return injected


def resident() -> int:
    """Return the bytes this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ---- a training whose server goes away -------------------------------------------------------------------------------


class Leaving:
    """Answers so many questions and then says that it is unavailable."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self, app: Application) -> Application:
        async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == "/v1/score":
                self.left -= 1
                if self.left < 0:
                    await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"0")]})
                    await send({"type": "http.response.body", "body": b"gone"})
                    return
            await app(scope, receive, send)

        return wrapped


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    return prepared_for_the_toy(tmp_path / "work", toy_folder)


def judged_at(url: str) -> str:
    return f"source.reward={{type: remote, url: '{url}', attempts: 2, deadline: 600.0, pixels: float32}}"


@dataclass(frozen=True)
class Brightness(RewardModel):
    """Mean of all pixels."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device: torch.device) -> Brightness:
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        return Rewards(media.pixels.mean((1, 2, 3, 4)))


@pytest.mark.slow
def test_a_server_that_goes_away_costs_no_step(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    leaving = Leaving(questions=10_000)
    with served(Brightness(), leaving) as url:
        far = ("evaluation.prompts=null", "output.save_every=0", judged_at(url))
        assert train(folder, "grpo", "name=whole", *far) == 0
        leaving.left = 2
        assert train(folder, "grpo", *far) == 2
        said = capfd.readouterr().err
        assert f"{url} gave no answer" in said
        assert "the last: status 503 gone" in said
        assert "checkpoint-2 is saved; continue with --resume latest" in said
        leaving.left = 10_000
        assert train(folder, "grpo", *far, "--resume", "latest") == 0
    assert left_by(folder / "runs" / "run") == left_by(folder / "runs" / "whole")


def test_a_server_that_is_not_there_is_said_before_anything_is_loaded(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(folder, "grpo", judged_at("http://127.0.0.1:9")) == 2
    said = capfd.readouterr().err
    assert "is the server running? (visalign serve-reward NAME)" in said
    assert "Traceback" not in said
    assert not (folder / "runs" / "run").exists()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (reply(b"", "301 Moved", "Location: http://elsewhere/"), "redirects are not followed"),
        (reply(b'{"scores": [1.0]}'), "/info is not that of a visalign-reward server"),
        (b"", "no whole answer within"),
    ],
    ids=["redirecting", "lying", "slow"],
)
def test_servers_that_cannot_be_trusted_are_refused(
    folder: Path, capfd: pytest.CaptureFixture[str], script: bytes, says: str
) -> None:
    slow = script == b""
    with speaking(script, hold=600.0 if slow else 0.0) as (url, _):
        reward = f"source.reward={{type: remote, url: '{url}', attempts: 1, deadline: {1.0 if slow else 600.0}}}"
        assert train(folder, "grpo", reward) == 2
    said = capfd.readouterr().err
    assert says in said
    assert "Traceback" not in said
