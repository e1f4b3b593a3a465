"""Choosing among candidates: the best wins, earlier candidates stay, and what has no score is never chosen."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evals.choosing.choose import choose, gains
from evals.generation.shelf import Row

ITEMS, PICTURES = 2, 3


def rows_of(tries: int) -> list[Row]:
    """Return candidates in the order in which an evaluation makes them."""
    order = [(sample, item) for sample in range(PICTURES * tries) for item in range(ITEMS)]
    return [Row(f"{item:05d}-{sample}", item, sample, 1000 * item + sample) for sample, item in order]


@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_best_of_each_place_is_chosen(tries: int, random) -> None:
    rows = rows_of(tries)
    scores = [random.choice((math.nan, random.random(), 0.5)) for _ in rows]
    for pick in choose(rows, scores, PICTURES):
        own = [n for n, row in enumerate(rows) if (row.item, row.sample % PICTURES) == (pick.item, pick.picture)]
        assert pick.chosen in own
        assert pick.tried == len(own) == tries
        assert rows[pick.plain].sample == pick.picture
        known = [n for n in own if not math.isnan(scores[n])]
        if known:
            assert scores[pick.chosen] == max(scores[n] for n in known)
        else:
            assert pick.chosen == pick.plain


def test_more_tries_change_a_choice_for_a_better_one_only() -> None:
    drawn = np.random.default_rng(0).random(ITEMS * PICTURES * 8)
    few, many = (
        [drawn[pick.chosen] for pick in choose(rows_of(n), drawn[: ITEMS * PICTURES * n].tolist(), PICTURES)]
        for n in (2, 8)
    )
    assert all(late >= early for early, late in zip(few, many, strict=True))
    assert many != few


def test_of_equals_the_plain_one_is_taken() -> None:
    assert all(pick.chosen == pick.plain for pick in choose(rows_of(4), [1.0] * (ITEMS * PICTURES * 4), PICTURES))


def test_a_reward_that_was_held_out_gains_nothing_from_what_it_has_nothing_to_do_with() -> None:
    """And the one that chose gains what the best of four of a uniform number does: from 1/2 to 4/5."""
    draw = np.random.default_rng(1)
    rows = [Row(f"{item:05d}-{sample}", item, sample, 0) for sample in range(4) for item in range(2000)]
    scores = {"other": draw.random(len(rows)), "chooser": draw.random(len(rows))}
    first, second = gains(choose(rows, scores["chooser"].tolist(), 1), scores, "chooser")
    assert (first.title, first.chooses, second.chooses) == ("chooser", True, False)
    assert first.plain.low < 0.5 < first.plain.high
    assert first.chosen.low < 0.8 < first.chosen.high
    assert second.change.low < 0 < second.change.high
