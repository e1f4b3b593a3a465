"""How well scores agree with people: accuracy with and without ties, tau, calibration, and with each other.

Conventions: `margin` is the first's score minus the second's, `human` is 1 where people prefer the first, -1 where they
prefer the second, 0 where neither. A comparison that could not be scored has margin NaN: it is counted and left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from alignment.reports.statistics import Interval, interval

BINS = 10
"""Of the reliability curve, with equally many comparisons each."""
_FEWEST = 20
"""Comparisons below which a calibration is not reported."""


@dataclass(frozen=True)
class Calibration:
    """P(first is better) = sigmoid(margin / temperature), the temperature fitted to the comparisons themselves.

    Attributes:
        temperature: The fitted one; infinite where the scores carry no information.
        log_loss: Mean, in nats; ln 2 = 0.693 for a coin.
        brier: Mean squared error of the probability; 0.25 for a coin.
        expected_error: Mean distance of a bin's predicted and observed share, weighted by size (ECE).
        curve: (predicted, observed, comparisons) of each bin.
    """

    temperature: float
    log_loss: float
    brier: float
    expected_error: float
    curve: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Agreement:
    """How one reward model's margins agree with people.

    Attributes:
        accuracy: Share of decided comparisons in which the preferred one scores higher; a tie of scores is wrong.
        with_ties: Best share of all three answers right, where |margin| <= `tie_within` counts as "tie". The threshold
            is chosen on these same comparisons, as in the literature, and the interval does not account for that.
        tie_within: That threshold; -1 if it is best to predict no ties.
        tau: Kendall's tau-b of margins and verdicts.
        calibration: Of the decided comparisons; None where there are too few.
        unscored: Comparisons left out.
        by_part: Accuracy of each part of the benchmark that has decided comparisons.
    """

    accuracy: Interval
    with_ties: Interval
    tie_within: float
    tau: float
    calibration: Calibration | None
    unscored: int
    by_part: dict[str, Interval]


def agreement(margins: Sequence[float], human: Sequence[int], units: Sequence[str], parts: Sequence[str]) -> Agreement:
    """Return how `margins` agree with people.

    Args:
        margins: One per comparison; NaN where it could not be scored.
        human: Verdicts, one per comparison.
        units: What is resampled together, one per comparison.
        parts: Part of the benchmark, one per comparison; empty for none.
    """
    m, h = np.asarray(margins, dtype=np.float64), np.asarray(human)
    scored = ~np.isnan(m)
    right = np.where(scored & (h != 0), (np.sign(m) == h).astype(np.float64), np.nan)
    within = tie_threshold(m[scored], h[scored])
    three_way = np.where(scored, (np.where(np.abs(m) <= within, 0, np.sign(m)) == h).astype(np.float64), np.nan)
    names = sorted({part for part, verdict in zip(parts, human, strict=True) if part and verdict})
    member = np.asarray(parts)
    decided = scored & (h != 0)
    return Agreement(
        accuracy=interval(right.tolist(), units),
        with_ties=interval(three_way.tolist(), units),
        tie_within=within,
        tau=tau_b(m[scored], h[scored]),
        calibration=calibration(m[decided], h[decided]) if decided.sum() >= _FEWEST else None,
        unscored=int((~scored).sum()),
        by_part={name: interval(np.where(member == name, right, np.nan).tolist(), units) for name in names},
    )


def tie_threshold(margins: np.ndarray, human: np.ndarray) -> float:
    """Return the threshold below which to predict "tie" so that most of the three answers are right.

    Source: Deutsch, Foster and Freitag, "Ties Matter" (arXiv 2305.14324), algorithm 1.
    """
    if len(margins) == 0:
        return -1.0
    size = np.abs(margins)
    order = np.argsort(size, kind="stable")
    right, tied = (np.sign(margins) == human)[order] & (size[order] > 0), (human == 0)[order]
    # With the k smallest margins called ties: ties among them are right, and the others' signs are.
    gained = np.concatenate([[0], np.cumsum(tied)]) + right.sum() - np.concatenate([[0], np.cumsum(right)])
    last_of_equal = np.append(size[order][1:] != size[order][:-1], True)
    allowed = np.concatenate([[True], last_of_equal])  # a threshold cannot part equal margins
    best = int(np.where(allowed, gained, -1).argmax())
    return -1.0 if best == 0 else float(size[order][best - 1])


def tau_b(margins: np.ndarray, human: np.ndarray) -> float:
    """Return Kendall's tau-b between verdicts and margins, a comparison being a pair; NaN where one never decides."""
    concordant = int(((np.sign(margins) * human) > 0).sum())
    discordant = int(((np.sign(margins) * human) < 0).sum())
    decided = math.sqrt(float((margins != 0).sum()) * float((human != 0).sum()))
    return (concordant - discordant) / decided if decided else math.nan


def calibration(margins: np.ndarray, human: np.ndarray) -> Calibration:
    """Fit the temperature of Bradley and Terry's model to decided comparisons, and measure what it predicts."""
    first = (human > 0).astype(np.float64)
    scale = float(np.abs(margins).mean())
    if scale == 0:
        return Calibration(
            math.inf, math.log(2), 0.25, abs(0.5 - float(first.mean())), ((0.5, float(first.mean()), len(first)),)
        )
    unit = margins / scale

    def loss(log_slope: float) -> float:
        return float(np.logaddexp(0, -human * unit * math.exp(log_slope)).mean())

    slope = math.exp(optimize.minimize_scalar(loss, bounds=(-12, 12), method="bounded").x)
    predicted = 1 / (1 + np.exp(-np.clip(unit * slope, -500, 500)))
    curve = [
        (float(predicted[rows].mean()), float(first[rows].mean()), len(rows))
        for rows in np.array_split(np.argsort(predicted, kind="stable"), BINS)
        if len(rows)
    ]
    error = sum(n * abs(mean - share) for mean, share, n in curve) / len(first)
    return Calibration(
        scale / slope, loss(math.log(slope)), float(((predicted - first) ** 2).mean()), error, tuple(curve)
    )


@dataclass(frozen=True)
class Concord:
    """How two reward models agree with each other.

    Attributes:
        same: Share of comparisons in which both prefer the same one.
        rank: Spearman's correlation of their margins; NaN where one never differs.
    """

    same: float
    rank: float


def concord(one: Sequence[float], other: Sequence[float]) -> Concord:
    """Return how two models' margins agree, over comparisons that both scored."""
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    if len(a) < 2:
        return Concord(math.nan, math.nan)
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    rank = math.nan if constant else float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
    return Concord(float((np.sign(a) == np.sign(b)).mean()), rank)


def spread(margins: Sequence[float], human: Sequence[int]) -> float:
    """Return the median |margin| of decided comparisons: the unit in which other changes of a score are reported."""
    m = np.abs([m for m, h in zip(margins, human, strict=True) if h and not math.isnan(m)])
    return float(np.median(m)) if len(m) else math.nan
