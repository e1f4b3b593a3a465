"""Agreement with people: the numbers of small cases by hand, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evals.agreement import agreement, calibration, concord, spread, tau_b, tie_threshold

SAME = 1e-12
FITTED = 0.1  # relative: of a temperature fitted to 4,000 draws


def found(margins: list[float], human: list[int]):
    units = [str(i) for i in range(len(human))]
    return agreement(margins, human, units, [""] * len(human))


def test_a_case_by_hand() -> None:
    # Right, wrong, a tie of scores (wrong), a tie of people, one without a score.
    made = found([2.0, -1.0, 0.0, 0.1, math.nan], [1, 1, 1, 0, -1])
    assert made.accuracy.mean == pytest.approx(1 / 3)
    assert made.accuracy.n == 3
    assert made.unscored == 1
    # Within 0.1 a tie is said: the first and the tie of people are right, of four.
    assert made.tie_within == 0.1
    assert made.with_ties.mean == pytest.approx(2 / 4)


def test_scores_that_are_the_verdicts_agree_with_them() -> None:
    made = found([1.0, -1.0, 0.0] * 10, [1, -1, 0] * 10)
    assert made.accuracy.mean == 1
    assert made.with_ties.mean == 1
    assert made.tau == pytest.approx(1)


pairs = st.lists(
    st.tuples(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), st.sampled_from([-1, 0, 1])), min_size=1
)


@given(pairs)
@settings(max_examples=200)
def test_the_threshold_is_the_best_there_is(drawn: list[tuple[float, int]]) -> None:
    m, h = (np.asarray(column) for column in zip(*drawn, strict=True))

    def right(within: float) -> int:
        return int(
            (np.where(np.abs(m) <= within, 0, np.sign(m)) == h).sum() - (within < 0) * ((m == 0) & (h == 0)).sum()
        )

    best = max(right(within) for within in (-1.0, *np.abs(m)))
    assert right(tie_threshold(m, h)) == best


@given(pairs)
@settings(max_examples=100)
def test_turning_everything_round_changes_nothing(drawn: list[tuple[float, int]]) -> None:
    m, h = (np.asarray(column) for column in zip(*drawn, strict=True))
    assert tie_threshold(-m, -h) == tie_threshold(m, h)
    np.testing.assert_equal(tau_b(-m, -h), tau_b(m, h))


def test_tau_is_kendalls_of_the_scores_of_one_ranking() -> None:
    # For the pairs of one list, tau-b over pairs is tau-b of the list.
    rng = np.random.default_rng(0)
    human, score = rng.integers(0, 4, 12), rng.integers(0, 5, 12)
    upper = np.triu_indices(12, 1)
    m, h = ((x[:, None] - x[None, :])[upper] for x in (score, human))
    assert tau_b(m, np.sign(h)) == pytest.approx(stats.kendalltau(score, human).statistic, abs=SAME)


def test_the_temperature_that_drew_the_verdicts_is_found() -> None:
    rng = np.random.default_rng(0)
    m = rng.normal(0, 3, 4000)
    human = np.where(rng.random(4000) < 1 / (1 + np.exp(-m / 2.0)), 1, -1)
    made = calibration(m, human)
    assert made.temperature == pytest.approx(2.0, rel=FITTED)
    assert made.expected_error < 0.03
    assert made.log_loss < math.log(2)


def test_scores_that_say_nothing_predict_a_coin() -> None:
    made = calibration(np.zeros(40), np.asarray([1, -1] * 20))
    assert made.log_loss == pytest.approx(math.log(2))
    assert made.brier == 0.25


def test_models_agree_with_themselves_and_not_with_their_opposite() -> None:
    m = [1.0, -2.0, 3.0, -4.0]
    assert concord(m, m).same == 1
    assert concord(m, [-x for x in m]).same == 0
    assert concord(m, [-x for x in m]).rank == pytest.approx(-1)
    assert math.isnan(concord(m, [1.0, math.nan, math.nan, math.nan]).same)


def test_the_spread_is_that_of_decided_comparisons() -> None:
    assert spread([1.0, -3.0, 100.0, math.nan], [1, -1, 0, 1]) == 2.0
