"""The page of a vote in a real browser and by hand: what is voted arrives once, and whoever opens it sees no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from alignment.data.batches import source_of
from alignment.data.prompts import read_prompts
from evals.voting.ballot import Matchup, Vote
from evals.voting.server import BODY, application, parsed
from evals.voting.votes import COMPARISONS, MEDIA, PAIRS, VOTES, Votes, read
from tests.support.browser import CHROMIUM, browser
from tests.support.served import running

TOKEN = "a token of twenty-four letters"
PROMPTS = ("a red circle", "<b>two</b> & \"three\" 'squares'", "three green triangles", "four")
SUBJECTS = ("old", "new")
EDITED, SOURCE = 2, "source.png"


@pytest.fixture
def votes(tmp_path: Path) -> Votes:
    return Votes(tmp_path, made(tmp_path), seed=0)


@pytest.fixture
def url(votes: Votes) -> Iterator[str]:
    with running(application(votes, TOKEN)) as found:
        yield found


def made(folder: Path) -> list[Matchup]:
    """Return pairs of which the new one is brighter."""
    (folder / MEDIA).mkdir(exist_ok=True)
    pairs = []
    for item, prompt in enumerate(PROMPTS):
        names = tuple(f"{200 * side + item:03d}.png" for side in range(2))
        for side, name in enumerate(names):
            Image.new("RGB", (16, 16), (200 * side + item,) * 3).save(folder / MEDIA / name)
        pairs.append(Matchup(f"prompts {item:05d}-0 old new", item, prompt, SUBJECTS, names))
    return pairs


def edited(folder: Path, *items: int) -> Votes:
    """Return votes on pairs of which some were made from a picture."""
    pairs = [replace(pair, source=SOURCE) if pair.item in items else pair for pair in made(folder)]
    Image.new("RGB", (32, 16)).save(folder / MEDIA / SOURCE)
    return Votes(folder, pairs, seed=0)


@contextmanager
def client(url: str) -> Iterator[httpx.Client]:
    """Be somebody who has opened the page."""
    with httpx.Client(base_url=url, timeout=60) as found:
        assert found.get("/", params={"token": TOKEN}).status_code == 200
        yield found


def brighter(told: dict) -> str:
    return "left" if told["left"] > told["right"] else "right"


def test_nothing_is_shown_without_the_token(url: str) -> None:
    for path in ("/", "/next?rater=ann", "/standing", f"/{MEDIA}/000.png", "/?token=another", "/nowhere"):
        answer = httpx.get(url + path)
        assert answer.status_code == 401
        assert "visalign vote" in answer.text
    assert httpx.post(url + "/vote", content=b"{}").status_code == 401
    assert httpx.get(url, headers={b"Cookie": b"visalign_vote=\xe9"}).status_code == 401


def test_what_is_shown_does_not_tell_who_made_it(url: str) -> None:
    with client(url) as ann:
        shown = ann.get("/next", params={"rater": "ann"})
        assert not any(name in shown.text for name in SUBJECTS)
        assert ann.get(f"/{MEDIA}/..%2fvotes.jsonl").status_code == 404
        assert ann.get(f"/{MEDIA}/votes.jsonl").status_code == 404
        assert "script-src" in shown.headers["Content-Security-Policy"]


def test_what_both_were_made_from_is_shown_and_learned_from(tmp_path: Path) -> None:
    votes = edited(tmp_path, *range(len(PROMPTS)))
    with running(application(votes, TOKEN)) as url, client(url) as ann:
        for _ in PROMPTS:
            told = ann.get("/next", params={"rater": "ann"}).json()
            ann.post("/vote", json={"pair": told["pair"], "rater": "ann", "said": "left"})
            assert ann.get(told["source"]).content == (tmp_path / MEDIA / SOURCE).read_bytes()
    assert [source_of(prompt).size for prompt in read_prompts(str(tmp_path / PAIRS)).texts] == [(32, 16)] * len(PROMPTS)
    compared = [json.loads(line)["image"] for line in (tmp_path / COMPARISONS).read_text().splitlines()]
    assert compared == [f"{MEDIA}/{SOURCE}"] * len(PROMPTS)


def test_two_vote_at_once_and_the_files_are_read_by_those_who_learn(votes: Votes, url: str, tmp_path: Path) -> None:
    with client(url) as ann, client(url) as bob:
        for rater in (ann, bob) * len(PROMPTS):
            name = "ann" if rater is ann else "bob"
            told = rater.get("/next", params={"rater": name}).json()
            said = "tie" if told["prompt"] == "four" else "bad" if told["prompt"].startswith("<b>") else brighter(told)
            sent = {"pair": told["pair"], "rater": name, "said": said}
            assert rater.post("/vote", json=sent).json()["kept"]
            assert not rater.post("/vote", json={**sent, "said": "bad"}).json()["kept"], "the first word counts"
        assert ann.get("/next", params={"rater": "ann"}).json() == {"pair": None, "done": len(PROMPTS)}
        told = ann.get("/standing").json()
    assert told["votes"] == 2 * len(PROMPTS)
    assert told["agreement"] == 1.0
    assert told["standings"][0]["said"] == {"first": 0, "second": 4, "tie": 2, "bad": 2}
    assert told["standings"][0]["rate"]["mean"] == pytest.approx(1 / 6)
    learned = [json.loads(line) for line in (tmp_path / PAIRS).read_text().splitlines()]
    assert [(one["chosen"] > one["rejected"], one["votes"]) for one in learned] == [(True, [2, 0])] * 2
    compared = [json.loads(line) for line in (tmp_path / COMPARISONS).read_text().splitlines()]
    assert [one["preferred"] for one in compared].count("tie") == 2
    assert len(compared) == 6


def test_votes_are_read_by_a_training_and_a_benchmark(votes: Votes, tmp_path: Path) -> None:
    from alignment.training.judges.pairs import read_pairs
    from evals.benchmarks.pairs import Pairs

    for pair, said in zip(votes.pairs, ("second", "second", "first", "tie"), strict=True):
        for rater in ("ann", "bob"):
            votes.add(Vote(pair.name, rater, said))  # type: ignore[arg-type]
    assert len(Pairs(str(tmp_path / COMPARISONS)).read()) == 8
    assert len(read_pairs(str(tmp_path / PAIRS))) == 3
    assert len(read_prompts(str(tmp_path / PAIRS)).texts) == 3


def test_raters_who_disagree_outvote_each_other(votes: Votes, tmp_path: Path) -> None:
    for rater, said in (("ann", "first"), ("bob", "second")):
        votes.add(Vote(votes.pairs[0].name, rater, said))  # type: ignore[arg-type]
    assert (tmp_path / PAIRS).read_text() == ""
    votes.add(Vote(votes.pairs[0].name, "cid", "second"))
    told = json.loads((tmp_path / PAIRS).read_text())
    assert (told["chosen"], told["votes"]) == (f"{MEDIA}/{votes.pairs[0].media[1]}", [2, 1])


def test_what_is_cut_off_is_no_vote_and_the_rest_is_kept(votes: Votes, tmp_path: Path) -> None:
    votes.add(Vote(votes.pairs[0].name, "ann", "second"))
    votes.add(Vote(votes.pairs[1].name, "ann", "first"))
    whole = (tmp_path / VOTES).read_bytes()
    for cut in range(1, len(whole) // 2):
        (tmp_path / VOTES).write_bytes(whole[:-cut])
        (tmp_path / PAIRS).write_text("")
        again = Votes(tmp_path, votes.pairs, seed=0)
        lines = (tmp_path / VOTES).read_bytes()
        assert lines == b"".join(whole.splitlines(keepends=True)[: again.count()])
        assert len((tmp_path / PAIRS).read_text().splitlines()) == again.count() == (2 if cut == 1 else 1)


def test_a_damaged_line_is_named(votes: Votes, tmp_path: Path) -> None:
    (tmp_path / VOTES).write_text('{"pair": "x", "rater": "ann", "said": "perhaps"}\n')
    with pytest.raises(Exception, match=r"votes.jsonl, line 1 is no vote \('said' is 'perhaps'\)"):
        read(tmp_path / VOTES)


NONE = {
    "no JSON": b"\xff",
    "no object": b"[1]",
    "no pair": b"{}",
    "a text": b'{"pair": "0", "rater": "a", "said": "tie"}',
    "a pair too many": b'{"pair": 4, "rater": "a", "said": "tie"}',
    "yes": b'{"pair": true, "rater": "a", "said": "tie"}',
    "no rater": b'{"pair": 0, "rater": "", "said": "tie"}',
    "another word": b'{"pair": 0, "rater": "a", "said": "first"}',
    "a list": b'{"pair": 0, "rater": "a", "said": []}',
    "two lines": b'{"pair": 0, "rater": "a\\nb", "said": "tie"}',
}


@pytest.mark.parametrize("body", NONE.values(), ids=NONE)
def test_what_is_no_vote_is_refused(body: bytes, votes: Votes, url: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        parsed(body, votes)
    with client(url) as ann:
        assert ann.post("/vote", content=body).status_code == 422
        assert ann.post("/vote", content=b" " * (BODY + 1)).status_code == 413
        assert ann.get("/next", params={"rater": "a" * 41}).status_code == 422
    assert (tmp_path / VOTES).read_text() == ""


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser, which no package index of Python has")
def test_people_vote_by_keyboard_and_finger(tmp_path: Path) -> None:
    votes, shown = edited(tmp_path, EDITED), "document.body.dataset.pair"
    sides = "[...document.querySelectorAll('#left img, #right img')]"
    source = "!document.getElementById('source').hidden"
    count = f"document.images.length == ({source} ? 3 : 2)"
    loaded = f"{sides}.length == 2 && {count} && [...document.images].every(i => i.complete && i.naturalWidth)"
    lighter = f"(a => a[0].src > a[1].src ? 'left' : 'right')({sides})"
    seen = {}
    with browser(tmp_path / "profile") as page:
        with running(application(votes, TOKEN)) as url:
            port = int(url.rpartition(":")[2])
            page.open(f"{url}/?token={quote(TOKEN)}&rater=ann")
            page.wait(loaded)
            assert TOKEN not in page.run("location.href")
            first = page.run(shown)
            seen[first] = page.run(source)
            page.open(url)  # a reload: the cookie and the name are kept, and the pair stays
            page.wait(loaded)
            assert page.run(shown) == first
            page.press("ArrowLeft" if page.run(lighter) == "left" else "ArrowRight")
            second = page.wait(f"{shown} != '{first}' && {loaded} && {shown}")
            seen[second] = page.run(source)
            page.resize(390, 800)
            tops = page.run("['left', 'right'].map(f => document.getElementById(f).getBoundingClientRect().top)")
            assert tops[0] < tops[1], "on a phone one stands above the other"
            page.run(f"document.getElementById({lighter}).click()")
            third = page.wait(f"{shown} != '{second}' && {loaded} && {shown}")
            seen[third] = page.run(source)
        assert page.run(f"{sides}.length") == 2
        page.press("t")  # while nobody listens
        page.wait("document.getElementById('note').textContent.startsWith('no connection')")
        with running(application(votes, TOKEN), port=port):
            fourth = page.wait(f"{shown} != '{third}' && {loaded} && {shown}")
            seen[fourth] = page.run(source)
            page.press("r")
            page.wait("document.getElementById('standing').textContent.includes('old against new')")
            page.press("b")
            page.wait(f"{shown} == 'none'")
            assert page.run("document.querySelector('#prompt b') === null")
    assert seen == {str(item): item == EDITED for item in range(len(PROMPTS))}
    assert [vote.rater for vote in read(tmp_path / VOTES)] == ["ann"] * 4
    said = {vote.pair: vote.said for vote in read(tmp_path / VOTES)}
    assert sorted(said.values()) == ["bad", "second", "second", "tie"]
