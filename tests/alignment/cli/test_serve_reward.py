"""`visalign serve-reward`: it starts, says where it is, answers, leaves when asked; and what it refuses to do."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
import torch

from alignment.cli import main as cli
from reward_models.base import Media, RewardModel, Rewards, load_reward
from reward_models.serving.remote import Remote
from tests.reward_models.test_foreign import module
from tests.support.questions import post

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-of-more-than-16-letters"
REWARD = """\
type: weighted
parts:
  red: {reward: {type: colour}, weight: 2.0}
  blue: {reward: {type: colour, channel: blue}}
"""


@pytest.mark.slow
def test_it_serves_until_it_is_asked_to_leave(tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text(REWARD)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    words = [str(tmp_path / "reward.yaml"), "parts.blue.weight=0.5", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-m", "alignment", "serve-reward", *words, "--token-file", str(tmp_path / "token")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            at = r"(http://127\.0\.0\.1:\d+)"
            found = re.fullmatch(rf"Weighted \w{{32}} at {at}, 2 known answers given, with a token\n", line)
            assert found, line
            assert TOKEN not in line
            far = Remote(found[1], token_file=str(tmp_path / "token"))
            red = Media(torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 8, 8))
            rewards = load_reward(far, device=torch.device("cpu"))(media=red, prompts=[""])
            assert rewards.value.item() == pytest.approx(2 * 1.0 - 0.5 * 0.5)
            assert rewards.parts["blue"].item() == pytest.approx(-0.5)
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(600) in (0, -signal.SIGTERM)


def refused(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = cli.run(["serve-reward", *words])
    said = capfd.readouterr().err
    assert said.startswith("visalign: ")
    assert said.count("\n") == 1
    return code, said


def test_an_address_that_others_can_reach_needs_a_token(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VISALIGN_REWARD_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        code, said = refused(capfd, "colour", "--host", host)
        assert code == 2
        assert "without a token whoever reaches it may use it" in said


def test_an_address_that_is_taken(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, said = refused(capfd, "colour", "--port", str(other.getsockname()[1]))
    assert code == 3
    assert "cannot listen on 127.0.0.1 port" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["colur"], "no reward model called 'colur'. Did you mean 'colour'?"),
        (["colour", "channel=pink"], "channel is one of red, green, blue"),
        (["colour", "--rows", "0"], "--rows has to be more than 0 and finite, got 0"),
        (["colour", "--patience", "nan"], "--patience has to be more than 0 and finite, got nan"),
        (["colour", "--patience", "inf"], "--patience has to be more than 0 and finite, got inf"),
        (["colour", "--connections", "0"], "--connections has to be more than 0 and finite, got 0"),
        (["colour", "--connections", "2000000000"], "ulimit -n 2000000128"),
        (["colour", "--port", "70000"], "--port is from 0 to 65535, got 70000"),
        (["colour", "--device", "fridge"], "--device fridge: expected auto, cpu, cuda or cuda:N"),
        (["nowhere.yaml"], "there is no such config file"),
        (["function", "call=no_such_module:f", "--port", "0"], "No module named 'no_such_module'"),
        (["colour", "--token-file", "nowhere"], "the token file nowhere cannot be read"),
        (["tests.support.failures:Swapped", "--port", "0"], "Swapped does not give its known answers"),
    ],
)
def test_what_cannot_be_served(capfd: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert says in refused(capfd, *words)[1]


@dataclass(frozen=True)
class Buggy(RewardModel):
    """Has a bug of ours, which is no answer to any question."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device: torch.device) -> Buggy:
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        return module("reward_models.broken", "def run():\n    raise TypeError('a bug')\n")["run"]()


@dataclass(frozen=True)
class Hanging(RewardModel):
    """Never ends a call, until it is let go."""

    differentiable: ClassVar[bool] = False
    go: ClassVar[threading.Event] = threading.Event()

    def load(self, *, device: torch.device) -> Hanging:
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        self.go.wait()
        return Rewards(torch.zeros(len(media)))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("model", "exit_code", "answer", "says"),
    [
        ("Buggy", 2, 500, "visalign: Buggy ended the thread that scores"),
        ("Hanging", 7, 503, "Hanging had not ended one call after --timeout 1 seconds, and the server has ended"),
    ],
)
def test_a_scorer_that_answers_no_more_ends_the_program(
    capfd: pytest.CaptureFixture[str], model: str, exit_code: int, answer: int, says: str
) -> None:
    """A process that runs and answers nobody would be found out by its clients alone."""
    Hanging.go.clear()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found: list[int] = []

    def ask() -> None:
        while not found:
            with suppress(httpx.TransportError):  # until it listens
                found.append(post(f"http://127.0.0.1:{port}").status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    code = cli.run(["serve-reward", f"{__name__}:{model}", "--port", str(port), "--device", "cpu", "--timeout", "1"])
    Hanging.go.set()
    asking.join()
    assert (code, found) == (exit_code, [answer])
    assert says in capfd.readouterr().err


ABSENT = ("accelerate", "av", "diffusers", "httpx", "jinja2", "matplotlib", "peft", "rich", "scipy", "transformers")


def test_a_server_needs_none_of_the_trainers_libraries(tmp_path: Path) -> None:
    """So that it runs beside an old reward package that wants old versions of them."""
    (tmp_path / "mine.py").write_text("def score(pixels, prompts):\n    return pixels.mean((1, 2, 3, 4))\n")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"
        "from alignment.cli import main as cli, serve_reward\n"
        "import uvicorn\n"
        "uvicorn.Server.run = lambda self, sockets: print('serving', self.config.app.title)\n"
        "sys.exit(cli.run(['serve-reward', 'function', 'call=mine:score', '--port', '0']))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "function mine:score" in found.stdout
