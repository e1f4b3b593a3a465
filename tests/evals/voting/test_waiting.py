"""A run waits for people's votes: what they say is the reward, what they do not say in time is none."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from alignment.cli.main import run
from alignment.config.run import Output
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training import session
from evals.voting.command import asking, matchup
from evals.voting.server import application, keep, what_is_next
from evals.voting.votes import Votes
from reward_models.base import Media, RewardError
from reward_models.combinators.win_rate import WinRate
from reward_models.judges import votes as judge
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.all import All
from tests.support.browser import CHROMIUM, browser
from tests.support.served import running
from tests.support.toy import GROUPS, saved, toy_run

CPU = torch.device("cpu")
SOON = 0.01  # seconds between two looks: nothing hangs on it
LEVELS = (10, 200, 90)


def grey(*levels: int) -> Media:
    return Media(torch.tensor(levels, dtype=torch.float32)[:, None, None, None, None].expand(-1, 1, 3, 4, 4) / 255)


def asked(folder: Path, **fields: object) -> judge.Votes:
    return judge.Votes(str(folder), pause=SOON, **fields)


def left_or_right(folder: Path, told: dict) -> str:
    """Return on which side the brighter picture is."""
    brightness = [np.asarray(Image.open(folder / told[side].removeprefix("/"))).mean() for side in ("left", "right")]
    return "left" if brightness[0] > brightness[1] else "right"


@contextmanager
def people(folder: Path, *raters: str) -> Iterator[Votes]:
    """Have raters at the page who like what is bright."""
    votes, over = Votes(folder, [], 0, asking(folder)), threading.Event()

    def vote() -> None:
        while not over.wait(SOON):
            for rater in raters:
                while (told := what_is_next(votes, rater)[0])["pair"] is not None:
                    said = {"pair": told["pair"], "rater": rater, "said": left_or_right(folder, told)}
                    keep(votes, json.dumps(said).encode())

    thread = threading.Thread(target=vote)
    thread.start()
    try:
        yield votes
    finally:
        over.set()
        thread.join()


@pytest.mark.filterwarnings("ignore:votes")
def test_what_people_say_is_what_it_answers(tmp_path: Path) -> None:
    compare = asked(tmp_path, raters=2).load(device=CPU)
    with people(tmp_path, "ann", "bob") as votes:
        found = compare(first=grey(10, 200, 90), second=grey(200, 10, 90), prompts=["a", "a", "a"])
    assert found.tolist() == [0.0, 1.0, 0.5]  # a picture beside itself is nobody's business
    assert votes.count() == 2, "a pair is asked about once, in whichever order it comes"


@pytest.mark.filterwarnings("ignore:votes")
def test_people_see_what_a_picture_was_made_from(tmp_path: Path) -> None:
    """One prompt, the same two results: made from two pictures, they are two pairs."""
    compare = asked(tmp_path).load(device=CPU)
    first, second = (replace(grey(level, level), source=grey(30, 60)) for level in (10, 200))
    with people(tmp_path, "ann"):
        assert compare(first=first, second=second, prompts=["a", "a"]).tolist() == [0.0, 0.0]
    pairs = judge.read_asked(tmp_path)
    sources = [np.asarray(Image.open(tmp_path / judge.MEDIA / pair.source)) for pair in pairs]
    assert [source.mean() for source in sources] == [30, 60]
    votes = Votes(tmp_path, [matchup(pair) for pair in pairs], 0)
    assert what_is_next(votes, "bob")[0]["source"] in [f"/{judge.MEDIA}/{pair.source}" for pair in pairs]


def test_what_nobody_says_in_time_is_none_and_counts_when_it_is_asked_again(tmp_path: Path) -> None:
    late, media = asked(tmp_path, hours=0).load(device=CPU), {"first": grey(10), "second": grey(200)}
    with pytest.warns(UserWarning, match="votes: 1 of 1 pairs lack votes, and time is up"):
        assert late(**media, prompts=["a"]).isnan().all()
    with pytest.warns(UserWarning, match=f"votes: 1 pairs wait .* --waiting {tmp_path}"), people(tmp_path, "ann"):
        asked(tmp_path).load(device=CPU)(**media, prompts=["a"])
    assert late(**media, prompts=["a"]).tolist() == [0.0]  # and no warning
    with pytest.warns(UserWarning, match="time is up"):
        assert late(**media, prompts=["another"]).isnan().all()


def test_the_page_asks_what_is_asked_now(tmp_path: Path) -> None:
    votes = Votes(tmp_path, [], 0, asking(tmp_path))
    assert what_is_next(votes, "ann") == ({"pair": None, "done": 0, "waiting": True}, 200)
    names = tuple(judge.kept(tmp_path, picture) for picture in grey(10, 200).pixels)
    lines = [
        {"pair": name, "prompt": name, "media": names, "until": until} for name, until in (("late", 0), ("now", 1e12))
    ]
    (tmp_path / judge.ASKED).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"pair": "half')
    told = what_is_next(votes, "ann")[0]
    assert told["prompt"] == "now"
    assert votes.shows(told["left"].rpartition("/")[2])
    assert not votes.shows("votes.jsonl")


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser, which no package index of Python has")
def test_an_open_page_shows_what_a_run_asks_when_it_asks(tmp_path: Path) -> None:
    votes, said = (
        Votes(tmp_path / "votes", [], 0, asking(tmp_path / "votes")),
        "document.getElementById('prompt').textContent",
    )
    with browser(tmp_path / "profile") as page, running(application(votes, "token")) as url:
        page.open(f"{url}/?token=token&rater=ann")
        page.wait(f"{said} == 'Nothing to judge now.'")
        compare = asked(tmp_path / "votes").load(device=CPU)
        with ThreadPoolExecutor(1) as run, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run.submit(compare, first=grey(10), second=grey(200), prompts=["a grey square"])
            page.wait(f"{said} == 'a grey square' && [...document.images].every(i => i.complete && i.naturalWidth)")
            page.press("ArrowLeft")
            page.wait(f"{said} == 'Nothing to judge now.'")
            assert found.result().tolist() in ([0.0], [1.0])


@pytest.mark.filterwarnings("ignore:votes")
def test_a_run_learns_from_votes_and_goes_on_with_those_that_are_there(tmp_path: Path) -> None:
    """The second run is the first again, from its start: it makes the same pictures, and nobody is asked."""
    folder, votes = saved(tmp_path, updates=50), tmp_path / "votes"

    def learning(name: str, hours: float) -> Path:
        reward = WinRate(asked(votes, hours=hours), both_orders=False, batch_size=1000)
        source = OnPolicySteps(
            prompts=GROUPS, dynamics=FlowSDE(0.7), group_size=4, shared_noise=False, window=All(), reward=reward
        )
        told = toy_run(folder, source, ClippedSurrogate(clip=1e-1), 2)
        session.train(replace(told, name=name, output=Output(str(tmp_path / "runs"))))
        return tmp_path / "runs" / name

    with people(votes, "ann") as page:
        first = learning("first", 1.0)
    assert page.count() > GROUPS
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [line["reward/unscored_fraction"] for line in lines] == [0, 0]
    again = learning("again", 0.0)
    assert page.count() == len((votes / judge.SAID).read_text().splitlines())
    weights = [load_file(one / "checkpoint-2" / "state" / "trainable.safetensors") for one in (first, again)]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])


def test_what_cannot_be_asked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Media(torch.zeros(1, 2, 3, 4, 4))
    with pytest.raises(RewardError, match="got clips of 2 frames"):
        asked(tmp_path).load(device=CPU)(first=clip, second=clip, prompts=["a"])
    with pytest.raises(RewardError, match="raters at least 1"):
        asked(tmp_path, raters=0)
    (tmp_path / judge.SAID).write_text('{"pair": "x", "rater": "ann", "said": "maybe"}\n')
    with pytest.raises(RewardError, match=r"votes.jsonl, line 1 is no vote"):
        asked(tmp_path, hours=0).load(device=CPU)(first=grey(1), second=grey(2), prompts=["a"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RewardError, match="people are asked by one process"):
        WinRate(asked(tmp_path)).check(())


def test_what_is_asked_is_one_thing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["vote", "assets/tiny_flux", "--waiting", str(tmp_path)]) == 2
    assert "leave assets/tiny_flux out" in capsys.readouterr().err
    assert run(["vote"]) == 2
    assert "got none" in capsys.readouterr().err
