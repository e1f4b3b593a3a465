from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from alignment.reports.statistics import difference, interval, is_share, over_runs

# 2,000 simulated experiments see a coverage of 0.95 with standard deviation 0.005: four of those.
EXPERIMENTS = 2000
COVERAGE = (0.93, 0.97)
ROUNDING = 1e-12  # float64 sums in another order

PROMPTS = [f"prompt {k // 4}" for k in range(160)]


def clustered(draw: np.random.Generator, *, spread: float, prompts: int = 40, pictures: int = 4) -> np.ndarray:
    """Scores with mean 0 in which a prompt's pictures share an offset."""
    offset = draw.normal(scale=spread, size=(prompts, 1))
    return (offset + draw.normal(scale=0.3, size=(prompts, pictures))).ravel()


@pytest.mark.parametrize("prompts", [5, 9, 40])
def test_nineteen_in_twenty_intervals_hold_the_truth(prompts):
    draw, covered = np.random.default_rng(prompts), 0
    for _ in range(EXPERIMENTS):
        found = interval(clustered(draw, spread=1.0, prompts=prompts).tolist(), PROMPTS[: 4 * prompts])
        covered += found.low <= 0.0 <= found.high
    assert COVERAGE[0] <= covered / EXPERIMENTS <= COVERAGE[1]


@pytest.mark.parametrize("prompts", [9, 40, 300])
def test_nineteen_in_twenty_comparisons_of_what_is_the_same_find_no_difference(prompts):
    """Two policies of one quality, right or wrong on each picture, which resemble each other where prompts are easy."""
    draw, covered = np.random.default_rng(prompts), 0
    names = [str(k // 4) for k in range(4 * prompts)]
    for _ in range(EXPERIMENTS):
        easy = np.repeat(draw.beta(1.0, 1.0, size=prompts), 4)
        same = draw.random(4 * prompts) < 0.5
        base, final = (draw.random((2, 4 * prompts)) < easy).astype(float)
        change = difference(base.tolist(), np.where(same, base, final).tolist(), names)
        covered += change.low <= 0.0 <= change.high
    assert COVERAGE[0] <= covered / EXPERIMENTS <= COVERAGE[1]


def test_pictures_taken_as_independent_would_be_too_sure():
    draw, covered = np.random.default_rng(0), 0
    for _ in range(EXPERIMENTS // 10):
        found = interval(clustered(draw, spread=1.0).tolist())
        covered += found.low <= 0.0 <= found.high
    assert covered / (EXPERIMENTS // 10) < COVERAGE[0]


# Wilson's intervals of shares near 0 hold more than they say, by design: at the ends a share has no room to err.
@pytest.mark.parametrize(("truth", "prompts", "most"), [(0.5, 9, 0.97), (0.5, 40, 0.97), (0.1, 40, 0.98)])
def test_proportions_of_clustered_pictures_hold_the_truth(truth, prompts, most):
    draw, covered = np.random.default_rng(prompts), 0
    for _ in range(EXPERIMENTS):
        chance = np.repeat(draw.beta(truth * 2, (1 - truth) * 2, size=prompts), 4)
        found = interval((draw.random(4 * prompts) < chance).astype(float).tolist(), PROMPTS[: 4 * prompts])
        covered += found.low <= truth <= found.high
    assert COVERAGE[0] <= covered / EXPERIMENTS <= most


@given(st.integers(1, 300), st.data())
@settings(max_examples=30)
def test_a_proportion_of_independent_pictures_is_wilsons(n, data):
    right = data.draw(st.integers(0, n))
    found = interval([1.0] * right + [0.0] * (n - right))
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert found.mean == pytest.approx(right / n, abs=ROUNDING)
    assert found.low == pytest.approx(expected.low, abs=ROUNDING)
    assert found.high == pytest.approx(expected.high, abs=ROUNDING)


def test_scores_of_any_range_that_are_all_the_same_have_no_interval():
    """None right of 160 is a share whose true value is small; a reward that is 0 everywhere may lie anywhere else."""
    for same in (0.0, 1.0, -3.5):
        found = interval([same] * 160, PROMPTS, share=False)
        assert (found.mean, found.n) == (same, 160)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    none = interval([0.0] * 160, PROMPTS, share=True)
    assert none == interval([0.0] * 160, PROMPTS)
    assert 0.0 == none.low < none.high < 0.1


def test_what_is_right_or_wrong_is_seen_or_known():
    seen = np.asarray([0.0, 1.0, math.nan])
    for scores, known, share in ((seen, False, True), (seen[:1], False, False), (seen[:1], True, True),
                                 (seen + 1, True, False)):  # fmt: skip
        assert is_share(scores, known=known) is share


def test_pictures_that_repeat_their_prompt_count_once():
    right = [1.0, 0.0, 1.0, 0.0, 0.0] * 8
    once = interval(right, [str(k) for k in range(40)])
    four_times = interval([score for score in right for _ in range(4)], PROMPTS)
    # The spread of 40 means is estimated with 39 degrees of freedom: wider by 1/39 of the variance, and by Student's
    # quantile, of which 160 independent pictures would know more.
    assert four_times.mean == once.mean
    assert four_times.low == pytest.approx(once.low, abs=0.005)
    assert four_times.high == pytest.approx(once.high, abs=0.005)


def test_the_names_of_prompts_do_not_matter():
    scores = clustered(np.random.default_rng(0), spread=0.5).tolist()
    assert interval(scores, PROMPTS) == interval(scores, [f"{hash(text)}" for text in PROMPTS])


def test_a_constant_has_no_spread():
    assert interval([0.3] * 8) == interval([0.3] * 8, ["a", "b"] * 4)
    assert (interval([0.3] * 8).low, interval([0.3] * 8).high) == pytest.approx((0.3, 0.3), abs=ROUNDING)


def test_all_right_is_not_certain():
    found = interval([1.0] * 160, PROMPTS)
    assert found.high == 1.0
    assert found.low == pytest.approx(binomtest(40, 40).proportion_ci(0.95, method="wilson").low, abs=ROUNDING)


def test_one_prompt_says_nothing_of_the_spread_between_prompts():
    assert interval([0.37]).mean == 0.37
    assert math.isnan(interval([0.37]).low)
    assert math.isnan(interval([0.1, 0.9], ["a", "a"]).high)


def test_nothing_scored_is_not_zero():
    assert math.isnan(interval([math.nan, math.nan]).mean)
    assert interval([math.nan]).n == 0
    assert interval([]).n == 0
    assert difference([], []).n == 0


def test_unscored_pictures_are_left_out():
    scores = clustered(np.random.default_rng(0), spread=0.5).tolist()
    with_holes = [value for score in scores for value in (score, math.nan)]
    twice = [text for text in PROMPTS for _ in range(2)]
    assert interval(with_holes, twice) == interval(scores, PROMPTS)


def test_a_paired_difference_is_surer_than_two_means():
    draw = np.random.default_rng(0)
    base = clustered(draw, spread=1.0)
    final = base + 0.1 + draw.normal(scale=0.05, size=len(base))
    change = difference(base.tolist(), final.tolist(), PROMPTS)
    assert 0 < change.low < 0.1 < change.high
    before, after = (interval(scores.tolist(), PROMPTS) for scores in (base, final))
    assert after.low < before.high


def test_a_difference_flips_its_sign_with_its_sides():
    draw = np.random.default_rng(0)
    base, final = (clustered(draw, spread=0.5).tolist() for _ in range(2))
    there, back = difference(base, final, PROMPTS), difference(final, base, PROMPTS)
    assert there.mean == pytest.approx(-back.mean, abs=ROUNDING)
    assert there.low == pytest.approx(-back.high, abs=ROUNDING)


def test_no_change_is_no_change():
    change = difference([0.2, 0.8, 0.5], [0.2, 0.8, 0.5])
    assert (change.mean, change.low, change.high) == (0.0, 0.0, 0.0)


def test_unpaired_scores_are_refused():
    with pytest.raises(ValueError, match="got 2 and 3"):
        difference([0.0, 1.0], [0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="one prompt a score"):
        interval([0.1, 0.2], ["a"])


def test_runs_have_students_interval():
    found = over_runs([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - 2.0 == pytest.approx(4.302652729911275 / math.sqrt(3), abs=1e-9)  # t quantile, 2 d.f.
    assert math.isnan(over_runs([1.0]).low)
