"""Laws of metrics of sets: closed forms of Gaussians, what copies and strangers give, no bias where none is said."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from alignment.features.base import apart
from evals.set_metrics.best_of import covered
from evals.set_metrics.diversity import pairwise, vendi
from evals.set_metrics.frechet import extrapolated, frechet, gaussian_distance
from evals.set_metrics.kernels import biased, cubic, discrepancy, gaussian, unbiased
from evals.set_metrics.neighbours import neighbours

ROUNDING = 1e-8  # float64 sums of some hundred terms, and their roots
D = 6
MEANS = np.zeros(D), np.linspace(-0.5, 0.5, D)
SIGMAS = np.linspace(0.5, 1.5, D), np.linspace(1.2, 0.4, D)
TRUTH = float(((MEANS[0] - MEANS[1]) ** 2).sum() + ((SIGMAS[0] - SIGMAS[1]) ** 2).sum())
"""Frechet's distance of two Gaussians whose covariances share their axes."""


def turned() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]


def drawn(which: int, n: int, draw: np.random.Generator) -> np.ndarray:
    return (MEANS[which] + SIGMAS[which] * draw.normal(size=(n, D))) @ turned().T


def test_the_distance_of_two_gaussians_is_the_closed_form() -> None:
    axes = turned()
    covariances = [axes @ np.diag(sigma**2) @ axes.T for sigma in SIGMAS]
    found = gaussian_distance(axes @ MEANS[0], covariances[0], axes @ MEANS[1], covariances[1])
    assert found == pytest.approx(TRUTH, abs=ROUNDING)


@pytest.mark.parametrize("n", [4, 50])  # fewer rows than numbers in each, and more
def test_the_distance_of_sets_is_that_of_their_gaussians(n: int) -> None:
    draw = np.random.default_rng(1)
    x, y = drawn(0, n, draw), drawn(1, 40, draw)
    given = [moment for z in (x, y) for moment in (z.mean(0), np.cov(z.T))]
    assert frechet(x, y) == pytest.approx(gaussian_distance(*given), abs=1e-6)  # roots of covariances near to zero
    assert frechet(x, x) == pytest.approx(0.0, abs=ROUNDING)


def test_few_pictures_make_the_distance_too_large_and_its_limit_does_not() -> None:
    wide, shift, truth, trials = 12, 0.25, 12 * 0.25**2, 80
    many = shift + np.random.default_rng(2).normal(size=(50_000, wide))
    plain, limit, held = [], [], 0
    for trial in range(trials):
        x = np.random.default_rng([3, trial]).normal(size=(160, wide))
        found = extrapolated(x, many, seed=trial)
        plain.append(frechet(x, many[:5000]))
        limit.append(found.mean)
        held += found.low <= truth <= found.high
    error = np.std(limit) / math.sqrt(trials)
    assert np.mean(plain) - truth > 6 * error
    assert abs(np.mean(limit) - truth) < 4 * error
    assert held >= 68  # of 80; 76 are meant, and fewer than 68 come one time in a thousand


def test_the_cubic_kernel_has_the_moments_of_gaussians() -> None:
    """In one dimension E (xy + 1)^3 is a sum of products of moments; the estimate is right on average at any size."""
    (m, s), (p, q) = (0.3, 0.8), (-0.2, 1.1)

    def expected(a: tuple[float, float], b: tuple[float, float]) -> float:
        moments = [(mean, mean**2 + sd**2, mean**3 + 3 * mean * sd**2) for mean, sd in (a, b)]
        first, second, third = (one * other for one, other in zip(*moments, strict=True))
        return third + 3 * second + 3 * first + 1

    truth = expected((m, s), (m, s)) + expected((p, q), (p, q)) - 2 * expected((m, s), (p, q))
    draw = np.random.default_rng(4)
    found = [unbiased(m + s * draw.normal(size=(5, 1)), p + q * draw.normal(size=(7, 1)), cubic) for _ in range(4_000)]
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / math.sqrt(len(found)))


def test_the_gaussian_kernel_has_its_closed_form() -> None:
    """Of Gaussians with variances s^2 and t^2, E k = (w / (w + s^2 + t^2))^(d/2) exp(-|m|^2 / (2 (w + s^2 + t^2)))."""
    w, s, t, shift, d = 100.0, 3.0, 5.0, 4.0, 2

    def expected(a: float, b: float, apart: float) -> float:
        wide = w + a**2 + b**2
        return (w / wide) ** (d / 2) * math.exp(-(apart**2) / (2 * wide))

    truth = expected(s, s, 0) + expected(t, t, 0) - 2 * expected(s, t, shift)
    draw = np.random.default_rng(5)
    found = []
    for _ in range(200):
        y = t * draw.normal(size=(40, d))
        y[:, 0] += shift
        found.append(unbiased(s * draw.normal(size=(40, d)), y, gaussian))
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / math.sqrt(len(found)))


@pytest.mark.parametrize("kernel", ["cubic", "gaussian"])
def test_a_discrepancy_has_an_interval_and_tells_strangers(kernel: str) -> None:
    draw = np.random.default_rng(6)
    same = discrepancy(drawn(0, 200, draw), drawn(0, 200, draw), kernel)
    other = discrepancy(drawn(0, 200, draw), drawn(1, 200, draw), kernel)
    assert same.low < same.mean < same.high < other.mean
    x = drawn(0, 30, draw)
    assert biased(x, x, gaussian) == pytest.approx(0.0, abs=ROUNDING)


def test_neighbours_of_strangers_of_copies_and_of_half() -> None:
    draw = np.random.default_rng(7)
    real = draw.normal(size=(200, 2))
    far = neighbours(real + 1000, real)
    assert (far.precision, far.recall, far.density, far.coverage) == (0.0, 0.0, 0.0, 0.0)
    copies = neighbours(real, real)
    assert (copies.precision, copies.recall, copies.coverage) == (1.0, 1.0, 1.0)
    corner = neighbours(real[(real[:, 0] > 0) & (real[:, 1] > 0)], real)
    assert corner.precision == 1.0
    assert corner.recall < 0.5
    assert corner.coverage < 0.6


def test_neighbours_are_counted_as_by_hand() -> None:
    draw = np.random.default_rng(8)
    x, real, k, wide = draw.normal(size=(12, 3)), draw.normal(size=(15, 3)), 3, 5

    def ball(points: np.ndarray, i: int, count: int) -> float:
        return sorted(float(np.linalg.norm(points[i] - other)) for other in points)[count]

    near = [[float(np.linalg.norm(one - other)) for other in real] for one in x]
    found = neighbours(x, real, k, wide)
    assert found.precision == np.mean([any(near[i][j] <= ball(real, j, k) for j in range(15)) for i in range(12)])
    assert found.recall == np.mean([any(near[i][j] <= ball(x, i, k) for i in range(12)) for j in range(15)])
    inside = [[near[i][j] <= ball(real, j, wide) for j in range(15)] for i in range(12)]
    assert found.density == pytest.approx(np.sum(inside) / (12 * wide), abs=ROUNDING)
    assert found.coverage == np.mean(np.any(inside, axis=0))


def test_vendi_counts_what_has_nothing_in_common() -> None:
    assert vendi(np.eye(7)) == pytest.approx(7, abs=ROUNDING)
    assert vendi(np.ones((7, 3))) == pytest.approx(1, abs=ROUNDING)
    assert vendi(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3, abs=ROUNDING)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_distances_within_a_prompt_are_those_of_its_pairs(distance: str) -> None:
    x, prompts = np.random.default_rng(9).normal(size=(9, 4)), [0, 1, 0, 1, 0, 1, 0, 1, 2]
    found = pairwise(x, prompts, distance)
    for prompt in (0, 1):
        own = x[[i for i, p in enumerate(prompts) if p == prompt]]
        pairs = [float(apart(a[None], b[None], distance)[0]) for a, b in itertools.combinations(own, 2)]
        assert found[prompt] == pytest.approx(np.mean(pairs), abs=ROUNDING)
    assert math.isnan(found[2])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_best_of_k_is_the_share_of_choices_with_a_right_one(k: int) -> None:
    right, prompts = np.array([1.0, 0, 0, 0, 1, math.nan, 0, 0, 0, 0]), [0] * 6 + [1] * 4
    found = covered(right, prompts, k)
    own = [1.0, 0, 0, 0, 1]
    assert found[0] == pytest.approx(np.mean([max(c) for c in itertools.combinations(own, k)]), abs=ROUNDING)
    assert found[1] == 0.0
    assert math.isnan(covered(right, prompts, 5)[1])


def test_neighbours_are_those_of_all_pairs_though_few_are_in_memory_together() -> None:
    draw = np.random.default_rng(3)
    x, real = drawn(0, 1300, draw).astype(np.float32), drawn(1, 1100, draw).astype(np.float32)
    apart = np.linalg.norm(x[:, None].astype(np.float64) - real[None], axis=2).astype(np.float32)
    own = np.sort(np.linalg.norm(real[:, None].astype(np.float64) - real[None], axis=2), axis=1)
    found = neighbours(x, real)
    assert found.precision == pytest.approx(float((apart <= own[:, 3]).any(1).mean()), abs=1e-3)  # ties of rounding
    assert found.coverage == pytest.approx(float((apart.min(0) <= own[:, 5]).mean()), abs=1e-3)


def test_the_memory_of_neighbours_grows_with_the_pictures_and_not_with_their_square() -> None:
    peaks = []
    for n in (2000, 4000):
        x = drawn(0, n, np.random.default_rng(3)).astype(np.float32)
        tracemalloc.start()
        neighbours(x, x[::-1])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.1 * peaks[0]
