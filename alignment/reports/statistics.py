"""How sure we are of a mean: 95 % intervals that know which pictures share a prompt.

Pictures of one prompt resemble each other, so it is prompts and not pictures that are counted. A score that is only
ever 0 or 1 is a proportion, with Wilson's interval at the effective number of pictures; any other score is a mean, with
Student's interval over prompts. Two policies that drew the same prompts with the same seeds are compared picture by
picture. With nine prompts, as a small held-out file has, a bootstrap over them would hold the truth in 88 of 100 cases.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and how sure we are of it.

    Attributes:
        mean: Mean over pictures; NaN when none was scored.
        low: Lower end of the 95 % interval; NaN with a single prompt, which shows no spread between prompts, and with
            scores of unknown range that are all the same.
        high: Upper end.
        n: Scored pictures.
    """

    mean: float
    low: float
    high: float
    n: int


def interval(scores: Sequence[float], prompts: Sequence[str] | None = None, *, share: bool | None = None) -> Interval:
    """Return the mean of `scores` with its 95 % interval.

    Args:
        scores: One number per picture; NaN marks a picture that was not scored, which is left out and not counted.
        prompts: The prompt of each picture; None takes the pictures as independent.
        share: Whether scores are 0 or 1 by what they mean; None takes them for that where none is anything else. Of
            scores of any range that are all the same, nothing says how far from their mean the true one may be: there
            is no interval.
    """
    sums, sizes = _clusters(scores, prompts)
    n = int(sizes.sum())
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    values = np.asarray(scores, dtype=np.float64)
    values = values[~np.isnan(values)]
    if share is not False and np.isin(values, (0.0, 1.0)).all():
        return _proportion(sums, sizes)
    if share is False and (values == values[0]).all():
        return Interval(float(values[0]), math.nan, math.nan, n)
    low, high = _student(sums, sizes)
    return Interval(float(sums.sum() / n), low, high, n)


def is_share(scores: np.ndarray, *, known: bool) -> bool:
    """Return whether scores are 0 or 1 by what they mean: both are seen and nothing else, or it is known.

    Args:
        scores: All that there are of a measure; NaN marks what was not scored.
        known: Whether what scores gives nothing else.
    """
    seen = set(scores[~np.isnan(scores)].tolist())
    return seen <= {0.0, 1.0} and (len(seen) == 2 or known)


def difference(base: Sequence[float], final: Sequence[float], prompts: Sequence[str] | None = None) -> Interval:
    """Return the mean of `final - base`, picture by picture, with its 95 % interval.

    Args:
        base: Scores of the pictures before.
        final: Scores of the pictures after, of the same prompts and seeds in the same order. A picture that either
            side could not score (NaN) is left out.
        prompts: The prompt of each picture; None takes the pictures as independent.

    Raises:
        ValueError: If the two lengths differ; unpaired scores need another test.
    """
    if len(base) != len(final):
        raise ValueError(f"a paired difference needs the same pictures twice, got {len(base)} and {len(final)}")
    sums, sizes = _clusters([after - before for before, after in zip(base, final, strict=True)], prompts)
    n = int(sizes.sum())
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    low, high = _student(sums, sizes)
    return Interval(float(sums.sum() / n), low, high, n)


def fall(changes: Sequence[float], chance: float) -> tuple[float, float]:
    """Return the mean of paired changes and the upper end of its one-sided interval of Student's.

    Args:
        changes: One per picture; NaN where either side was not scored. What is left to chance is independent.
        chance: How often the end lies below the true mean.

    Returns:
        The mean, and the end; both NaN with fewer than two changes, which show no spread.
    """
    values = np.asarray(changes, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return math.nan, math.nan
    mean, spread = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean + _quantile(len(values), 1 - chance) * spread


def over_runs(values: Sequence[float]) -> Interval:
    """Return the mean over independent runs with Student's 95 % interval; one run alone has no interval.

    With three seeds the factor is 4.3 and not 1.96: few runs are honestly wide.
    """
    runs = np.asarray(values, dtype=np.float64)
    mean = float(runs.mean())
    if len(runs) < 2:
        return Interval(mean, math.nan, math.nan, len(runs))
    half = _quantile(len(runs)) * float(runs.std(ddof=1)) / math.sqrt(len(runs))
    return Interval(mean, mean - half, mean + half, len(runs))


def _clusters(scores: Sequence[float], prompts: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of scores and the number of scored pictures of each prompt that has any."""
    values = np.asarray(scores, dtype=np.float64)
    if prompts is None:
        members = np.arange(len(values))
    elif len(prompts) != len(values):
        raise ValueError(f"one prompt a score, got {len(prompts)} prompts and {len(values)} scores")
    else:
        # The order of first appearance and not of the alphabet, so that renaming prompts changes no interval.
        members = np.asarray([*map({text: i for i, text in enumerate(dict.fromkeys(prompts))}.__getitem__, prompts)])
    scored = ~np.isnan(values)
    members = members[scored].astype(np.int64)
    sizes = np.bincount(members)
    sums = np.bincount(members, weights=values[scored])
    return sums[sizes > 0], sizes[sizes > 0]


def _student(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Return the ends of Student's interval of `sum(sums) / sum(sizes)`, prompts being independent."""
    clusters, n = len(sums), float(sizes.sum())
    if clusters < 2:
        return math.nan, math.nan
    mean = float(sums.sum()) / n
    if np.allclose(sums, mean * sizes, rtol=1e-12, atol=1e-12):
        return mean, mean
    half = _quantile(clusters) * math.sqrt(_variance(sums, sizes))
    return mean - half, mean + half


def _variance(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Return the variance of `sum(sums) / sum(sizes)` between draws of prompts (a ratio, linearised)."""
    clusters, n = len(sums), float(sizes.sum())
    return float(((sums - sums.sum() / n * sizes) ** 2).sum()) * clusters / (clusters - 1) / n**2


@functools.cache
def _quantile(count: int, share: float = (1 + CONFIDENCE) / 2) -> float:
    """Return the standard errors below which a share of Student's distribution lies, with `count` independent values.

    By default how far the 95 % interval reaches either way.
    """
    from scipy import special  # `stats`, which asks it too, takes most of a second to import

    return float(special.stdtrit(count - 1, share))


def _proportion(sums: np.ndarray, sizes: np.ndarray) -> Interval:
    """Return Wilson's interval of a proportion, with the pictures counted at what they are worth.

    The variance between prompts says how many independent pictures would be as sure: n_eff = p (1 - p) / var(p). It is
    kept between the number of prompts and the number of pictures, and is the number of prompts when every picture
    scored the same and the data cannot say. A variance that few prompts tell is less sure than one that as many
    pictures would: n_eff is worth that much less, by Student's quantiles.

    Source: Dean and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered surveys",
    Journal of Survey Statistics and Methodology 3(4), 2015; the adjustment is Korn and Graubard's.
    """
    n, clusters = float(sizes.sum()), len(sizes)
    p = float(sums.sum() / n)
    effective = float(clusters)
    if clusters > 1 and 0.0 < p < 1.0:
        variance = _variance(sums, sizes)
        effective = min(n, max(float(clusters), p * (1 - p) / variance)) if variance > 0 else n
        effective *= (_quantile(int(n)) / _quantile(clusters)) ** 2
    z2 = float(NormalDist().inv_cdf((1 + CONFIDENCE) / 2)) ** 2
    centre = (p + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * (p * (1 - p) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), int(n))
