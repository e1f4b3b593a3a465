"""Who sees what next, on which side, and how far raters agree."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.voting.ballot import EACH, Matchup, Said, Vote, agreement, left_is_first, next_pair, unsureness

SAYS: tuple[Said, ...] = ("first", "second", "tie", "bad")


def pair(item: int, one: str = "old", other: str = "new") -> Matchup:
    return Matchup(
        f"suite {item} {one} {other}", item, f"prompt {item}", (one, other), (f"{one}{item}.png", f"{other}{item}.png")
    )


PAIRS = [pair(item) for item in range(12)]


@given(st.lists(st.sampled_from(("ann", "bob")), min_size=24, max_size=24), st.integers(0, 5))
def test_each_rater_sees_each_pair_once_whoever_votes_when(order: list[str], seed: int) -> None:
    votes: list[Vote] = []
    for rater in order:
        shown = next_pair(PAIRS, votes, rater, seed)
        assert shown == next_pair(PAIRS, votes, rater, seed), "until it is voted on, it stays"
        if shown is not None:
            votes.append(Vote(shown.name, rater, "first"))
    for rater in ("ann", "bob"):
        own = [vote.pair for vote in votes if vote.rater == rater]
        assert len(own) == len(set(own)) == min(order.count(rater), len(PAIRS))


def test_some_pairs_are_judged_twice_and_the_others_are_new() -> None:
    votes = [Vote(one.name, "ann", "first") for one in PAIRS[:6]]
    for _ in range(6):
        shown = next_pair(PAIRS, votes, "bob", 0)
        assert shown is not None
        votes.append(Vote(shown.name, "bob", "first"))
    again = [any(vote.pair == one.name for one in PAIRS[:6]) for vote in votes[6:]]
    assert again == [False] * (EACH - 1) + [True, False]


def test_the_two_that_are_told_apart_least_are_asked_about() -> None:
    pairs = [pair(item, *two) for item in range(4) for two in itertools.combinations(("a", "b", "c"), 2)]
    sure = [Vote(one.name, "ann", "first") for one in pairs if "a" in one.subjects]
    shown = next_pair(pairs, sure, "ann", 0)
    assert shown is not None
    assert shown.subjects == ("b", "c")
    assert unsureness(pairs, sure)["b", "c"] == 0 < unsureness(pairs, sure)["a", "b"]


def test_sides_are_a_fair_coin() -> None:
    """6,000 tosses; 0.04 is six of their standard errors."""
    tosses = [left_is_first(seed, one, f"rater {n}") for seed in range(5) for one in PAIRS for n in range(100)]
    assert abs(sum(tosses) / len(tosses) - 0.5) < 0.04


def test_agreement_is_krippendorffs() -> None:
    """His example of two observers, ten units and binary data (2011, section A): alpha is 0.095."""
    one, other = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    votes = [
        Vote(str(unit), rater, SAYS[said]) for rater, row in (("a", one), ("b", other)) for unit, said in enumerate(row)
    ]
    assert agreement(votes) == pytest.approx(0.095, abs=5e-4)


def test_agreement_at_its_ends() -> None:
    both = [Vote(str(unit), rater, SAYS[unit % 2]) for unit in range(6) for rater in ("a", "b")]
    assert agreement(both) == 1.0
    against = [Vote(str(unit), rater, SAYS[(unit + (rater == "b")) % 2]) for unit in range(6) for rater in ("a", "b")]
    assert agreement(against) < 0
    assert math.isnan(agreement([Vote("0", "a", "first")]))
    assert agreement([Vote("0", rater, "first") for rater in "ab"]) == 1.0
