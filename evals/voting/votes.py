"""What was said, on the disk as it comes: one line a vote, and the same as pairs that trainings and benchmarks read."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from alignment.errors import DataError
from alignment.reports.statistics import Interval, interval
from evals.generation.page import finite
from evals.generation.shelf import write, writing
from evals.voting.ballot import Matchup, Said, Vote, agreement, next_pair

VOTES = "votes.jsonl"
PAIRS = "pairs.jsonl"
"""Of which one was better to most: what `offline_pairs` and `rewards train` read."""
COMPARISONS = "comparisons.jsonl"
"""Every vote, ties included: what `rewards bench --on pairs` reads."""
MEDIA = "media"


@dataclass(frozen=True)
class Tally:
    """How two subjects stand.

    Attributes:
        subjects: The two.
        rate: Share of votes for the first, ties counted half and what is bad on both sides not, with its interval.
        said: Votes by what was said.
    """

    subjects: tuple[str, str]
    rate: Interval
    said: dict[Said, int]


@dataclass
class Votes:
    """The votes of a folder. Safe to be asked from several threads.

    Attributes:
        folder: Where they are kept.
        pairs: What is voted on.
        seed: Of what is left to chance.
        asking: Returns what a run that waits asks about now, which becomes a part of `pairs`; None where all of them
            are asked about.
    """

    folder: Path
    pairs: Sequence[Matchup]
    seed: int
    asking: Callable[[], Sequence[Matchup]] | None = None
    _votes: list[Vote] = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._by_name = {pair.name: pair for pair in self.pairs}
        self._shown = {name for pair in self.pairs for name in pair.files}
        self._votes = read(self.folder / VOTES)
        self._mend()

    def _mend(self) -> None:
        """Bring all files to what was read: the last line may have been cut off, or one file be a vote behind."""
        known = [vote for vote in self._votes if vote.pair in self._by_name]
        for name, lines in {
            VOTES: [_line(asdict(vote)) for vote in self._votes],
            PAIRS: self._preferred(),
            COMPARISONS: [line for vote in known for line in self._comparison(vote)],
        }.items():
            write(self.folder / name, "".join(lines).encode(errors="replace"))

    def next(self, rater: str) -> Matchup | None:
        """Return what a rater sees next; None where nothing is left."""
        with self._lock:
            asked = self.pairs if self.asking is None else self._add_pairs(self.asking())
            return next_pair(asked, self._votes, rater, self.seed)

    def shows(self, name: str) -> bool:
        """Return whether a file is one of a pair's."""
        return name in self._shown

    def _add_pairs(self, asked: Sequence[Matchup]) -> Sequence[Matchup]:
        fresh = [pair for pair in asked if pair.name not in self._by_name]
        self.pairs = [*self.pairs, *fresh]
        self._by_name |= {pair.name: pair for pair in fresh}
        self._shown |= {name for pair in fresh for name in pair.files}
        return asked

    def add(self, vote: Vote) -> bool:
        """Keep a vote, on the disk when this returns; False if the rater had said something of the pair before.

        Raises:
            EnvironmentProblem: If the disk refuses.
            LookupError: If there is no such pair.
        """
        if vote.pair not in self._by_name:
            raise LookupError(vote.pair)
        with self._lock:
            if any((one.pair, one.rater) == (vote.pair, vote.rater) for one in self._votes):
                return False
            _append(self.folder / VOTES, [_line(asdict(vote))])
            self._votes.append(vote)
            _append(self.folder / COMPARISONS, self._comparison(vote))
            write(self.folder / PAIRS, "".join(self._preferred()).encode(errors="replace"))
            return True

    def count(self, rater: str | None = None) -> int:
        """Return the number of votes, or of a rater's."""
        with self._lock:
            return sum(rater in (None, vote.rater) for vote in self._votes)

    def standings(self) -> list[Tally]:
        """Return how every two subjects stand."""
        with self._lock:
            votes = [vote for vote in self._votes if vote.pair in self._by_name]
        found = []
        for subjects in dict.fromkeys(pair.subjects for pair in self.pairs):
            own = [vote for vote in votes if self._by_name[vote.pair].subjects == subjects]
            counted = [vote for vote in own if vote.said != "bad"]
            scores = [{"first": 1.0, "second": 0.0}.get(vote.said, 0.5) for vote in counted]
            prompts = [str(self._by_name[vote.pair].item) for vote in counted]
            said, rate = Counter(vote.said for vote in own), interval(scores, prompts)
            within = replace(rate, low=np.clip(rate.low, 0, 1).item(), high=np.clip(rate.high, 0, 1).item())
            found.append(Tally(subjects, within, {one: said[one] for one in get_args(Said)}))
        return found

    def agreement(self) -> float:
        """Return Krippendorff's alpha; NaN where no pair was judged by two."""
        with self._lock:
            return agreement(self._votes)

    def _preferred(self) -> list[str]:
        """Return a line for each pair of which most raters who chose chose the same."""
        wins = Counter((vote.pair, vote.said) for vote in self._votes)
        lines = []
        for pair in self.pairs:
            first, second = (wins[pair.name, said] for said in ("first", "second"))
            if first != second:
                chosen, rejected = (f"{MEDIA}/{name}" for name in (pair.media if first > second else pair.media[::-1]))
                told = [max(first, second), min(first, second)]
                sides = {"chosen": chosen, "rejected": rejected, "votes": told}
                lines.append(_line({"prompt": pair.prompt, **_source(pair), **sides}))
        return lines

    def _comparison(self, vote: Vote) -> list[str]:
        """Return the line of a vote; none of a pair of which both are bad, which are not as good as each other."""
        pair = self._by_name[vote.pair]
        first, second = (f"{MEDIA}/{name}" for name in pair.media)
        record = {"prompt": pair.prompt, **_source(pair), "first": first, "second": second, "preferred": vote.said}
        return [] if vote.said == "bad" else [_line({**record, "part": " / ".join(pair.subjects)})]


def read(path: Path) -> list[Vote]:
    """Return the votes of a file; a last line that was cut off while it was written is none.

    Raises:
        DataError: If another line is no vote.
    """
    if not path.is_file():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        try:
            record = json.loads(line)
            vote = Vote(str(record["pair"]), str(record["rater"]), record["said"])
            if vote.said not in get_args(Said):
                raise ValueError(f"'said' is {vote.said!r}")
        except (ValueError, LookupError, TypeError) as error:
            if number > len(lines):
                break
            raise DataError(f"{path}, line {number} is no vote ({error}); mend it or remove the line") from error
        found.append(vote)
    return found


def as_json(votes: Votes) -> dict[str, Any]:
    """Return how subjects stand, and how far raters agree; null for what is not known."""
    told = {"votes": votes.count(), "agreement": votes.agreement(), "standings": [asdict(t) for t in votes.standings()]}
    return finite(told)


def _source(pair: Matchup) -> dict[str, str]:
    """Return what a record says of the picture that both were made from, as data files of prompts say it."""
    return {"image": f"{MEDIA}/{pair.source}"} if pair.source else {}


def _line(record: Mapping[str, object]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _append(path: Path, lines: Sequence[str]) -> None:
    with writing(path), path.open("ab") as file:
        file.write("".join(lines).encode(errors="replace"))
        file.flush()
        os.fsync(file.fileno())
