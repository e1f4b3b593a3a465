"""The third stage: from scores and features to means, paired differences and what they say."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignment.features.base import Extractor, apart
from alignment.reports.statistics import Interval, difference, interval, is_share
from evals.generation.plan import EvalPlan
from evals.generation.progress import Bar
from evals.generation.subjects import REFERENCE
from evals.generation.table import Table, tables
from evals.generation.verdicts import Change, sentence
from evals.set_metrics.best_of import BEST_OF, covered
from evals.set_metrics.diversity import pairwise, vendi
from evals.set_metrics.frechet import FEWEST, extrapolated, frechet
from evals.set_metrics.kernels import discrepancy
from evals.set_metrics.neighbours import Neighbours, neighbours

SHOWN = 6
"""Best and worst changes that are shown of each subject."""


@dataclass(frozen=True)
class Fidelity:
    """How near a subject's pictures are to others, as a set.

    Attributes:
        against: What those are: "reference", or the base.
        distance: Frechet's, at this number of pictures.
        limit: The same at infinitely many; None beside the base, whose pictures are of the same noise.
        kernel: KID or CMMD, times 1000; None there, too.
        near: Precision, recall, density and coverage.
        pictures: How many were compared.
        others: With how many.
    """

    against: str
    distance: float
    limit: Interval | None
    kernel: Interval | None
    near: Neighbours
    pictures: int
    others: int


@dataclass(frozen=True)
class Standing:
    """A subject on a suite, by itself.

    Attributes:
        scores: Mean of each reward and of its parts.
        unscored: Rows that some reward could not score.
        reasons: Why, for the first few.
        diversity: Mean distance of two pictures of a prompt, by extractor.
        vendi: How many pictures with nothing in common would be as varied, by extractor.
        fidelity: How near to the reference and to the base, by extractor.
        looks: Means of what has a name by itself, by name.
    """

    scores: Mapping[str, Interval]
    unscored: int
    reasons: Mapping[str, str]
    diversity: Mapping[str, Interval]
    vendi: Mapping[str, float]
    fidelity: Mapping[str, tuple[Fidelity, ...]]
    looks: Mapping[str, Interval]


@dataclass(frozen=True)
class Beside:
    """A subject beside the base on a suite.

    Attributes:
        changes: Of every measure.
        categories: The same of rewards, by measure and category.
        looks: What has a name by itself.
        drift: Mean distance from the base's picture of the same prompt and noise, by extractor.
        wins: Share of the pictures that score higher than the base's, ties half, by reward.
        best: Rows that gained most.
        worst: Rows that lost most.
        says: In plain words.
    """

    changes: tuple[Change, ...]
    categories: Mapping[str, Mapping[str, Change]]
    looks: tuple[Change, ...]
    drift: Mapping[str, Interval]
    wins: Mapping[str, float]
    best: tuple[int, ...]
    worst: tuple[int, ...]
    says: str


@dataclass(frozen=True)
class OnSuite:
    """All subjects on a suite.

    Attributes:
        name: Of the suite.
        base: Name of what the others are compared with.
        prompts: How many.
        pictures: Of each subject.
        standings: Each subject by itself.
        beside: Each but the base, beside it.
        tables: What is known of each.
        notes: What a reader should know: unscored pictures, sets that are too small, whose scores these are not.
    """

    name: str
    base: str
    prompts: int
    pictures: int
    standings: Mapping[str, Standing]
    beside: Mapping[str, Beside]
    tables: Mapping[str, Table]
    notes: tuple[str, ...]


def compare(plan: EvalPlan, bar: Bar) -> list[OnSuite]:
    """Return what can be said of every suite.

    Raises:
        DataError: If pictures, scores or features are not all there.
    """
    bar.begin("compare", {})
    return [_on_suite(plan, suite) for suite in plan.suites]


def _on_suite(plan: EvalPlan, suite: str) -> OnSuite:
    found = tables(plan, suite)
    subjects = {name: table for name, table in found.items() if name != REFERENCE}
    base = next(iter(subjects))
    features = {title: {name: table.features(title) for name, table in found.items()} for title in plan.extractors}
    shares = _shares(subjects.values(), plan.right_or_wrong(suite))
    standings = {name: _standing(plan, table, features, shares) for name, table in subjects.items()}
    beside = {
        name: _beside(plan, (subjects[base], table), features, (standings[base], standings[name]), shares)
        for name, table in subjects.items()
        if name != base
    }
    count = len(subjects[base].names)
    return OnSuite(
        suite,
        base,
        len(plan.items[suite]),
        count,
        standings,
        beside,
        found,
        tuple(_notes(plan, suite, standings, count)),
    )


def _shares(subjects: Collection[Table], known: frozenset[str]) -> frozenset[str]:
    """Return the scores that are 0 or 1, as all subjects together tell."""
    found: dict[str, list[np.ndarray]] = {}
    for table in subjects:
        for name, column in table.scores.items():
            found.setdefault(name, []).append(column)
    return frozenset(name for name, all_of in found.items() if is_share(np.concatenate(all_of), known=name in known))


def _notes(plan: EvalPlan, suite: str, standings: Mapping[str, Standing], count: int) -> list[str]:
    notes = [
        f"{standing.unscored} of {count} pictures of {name} lack a score and are left out with their partners: "
        + "; ".join(f"{row}: {reason}" for row, reason in standing.reasons.items())
        for name, standing in standings.items()
        if standing.unscored
    ]
    notes += [
        f"{measure} of {name} is {one.mean:g} for every picture; nothing says between what its scores may lie, so that "
        "their mean has no interval"
        for name, standing in standings.items()
        for measure, one in standing.scores.items()
        if math.isnan(one.low) and one.n > 1 and len(plan.items[suite]) > 1
    ]
    if count < FEWEST:
        notes.append(f"{count} pictures are too few for distances between sets; {FEWEST} are the fewest")
    if scored := plan.suites[suite].scored:
        notes.append(f"{suite} is scored by {', '.join(plan.rewards_of(suite))} here; its publishers use {scored}")
    return notes


def _standing(
    plan: EvalPlan, table: Table, features: Mapping[str, Mapping[str, np.ndarray]], shares: frozenset[str]
) -> Standing:
    named = [str(prompt) for prompt in table.prompts]
    base = next(iter(plan.subjects)).name
    whole = {title: extractor for title, extractor in plan.extractors.items() if not extractor.names}
    fidelity = {
        title: tuple(
            _fidelity(features[title][table.subject], features[title][other], other, extractor)
            for other in (REFERENCE, base)
            if other in features[title] and other != table.subject and len(table.names) >= FEWEST
        )
        for title, extractor in whole.items()
    }
    return Standing(
        scores={name: mean_of(column, named, share=name in shares) for name, column in distinct(table.scores).items()},
        unscored=int(np.any([np.isnan(column) for column in table.scores.values()], axis=0).sum()),
        reasons=dict(list(table.reasons.items())[:3]),
        diversity={
            title: mean_of(pairwise(features[title][table.subject], table.prompts, extractor.distance))
            for title, extractor in whole.items()
        },
        vendi={title: vendi(features[title][table.subject]) for title in whole},
        fidelity=fidelity,
        looks={
            name: mean_of(features[title][table.subject][:, n], named)
            for title, extractor in plan.extractors.items()
            for n, name in enumerate(extractor.names)
        },
    )


def distinct(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return scores without the parts that are what they are a part of."""
    return {
        name: column
        for name, column in scores.items()
        if not any(
            name.startswith(f"{other}/") and np.array_equal(column, whole, equal_nan=True)
            for other, whole in scores.items()
        )
    }


def _fidelity(x: np.ndarray, others: np.ndarray, against: str, extractor: Extractor) -> Fidelity:
    apart = against == REFERENCE  # what is said of independent sets is not true of pairs
    return Fidelity(
        against,
        frechet(x, others),
        extrapolated(x, others) if apart else None,
        discrepancy(x, others, extractor.kernel) if apart else None,
        neighbours(x, others),
        len(x),
        len(others),
    )


def _beside(
    plan: EvalPlan,
    tables: tuple[Table, Table],
    features: Mapping[str, Mapping[str, np.ndarray]],
    standings: tuple[Standing, Standing],
    shares: frozenset[str],
) -> Beside:
    base, final = tables
    scores = {name: (base.scores[name], final.scores[name]) for name in distinct(final.scores) if name in base.scores}
    named = [str(prompt) for prompt in base.prompts]
    changes = [change(name, *both, named, share=name in shares) for name, both in scores.items()]
    changes += _best_of({name: both for name, both in scores.items() if name in shares}, base.prompts)
    changes += _varied(plan, base, final, features)
    changes += _nearer(*standings)
    looks = [
        replace(change(name, one[:, n], other[:, n], named), better=0)
        for title, extractor in plan.extractors.items()
        for one, other in [(features[title][base.subject], features[title][final.subject])]
        for n, name in enumerate(extractor.names)
    ]
    gained = _gained(scores)
    order = [int(row) for row in np.argsort(-gained, kind="stable") if not math.isnan(gained[row])]
    best = _one_of_each([row for row in order if gained[row] > 0], base.prompts)
    worst = _one_of_each([row for row in order[::-1] if gained[row] < 0], base.prompts)
    categories = [item.category for item in plan.items[base.suite]]
    return Beside(
        tuple(changes),
        {
            name: _by_category(name, both, base.prompts, categories, share=name in shares)
            for name, both in scores.items()
        },
        tuple(looks),
        {
            title: mean_of(apart(found[base.subject], found[final.subject], extractor.distance), named)
            for title, extractor in plan.extractors.items()
            for found in [features[title]]
            if not extractor.names
        },
        {name: _won(*both) for name, both in scores.items()},
        best,
        worst,
        sentence(final.subject, base.subject, base.suite, changes),
    )


def mean_of(column: np.ndarray, named: Sequence[str] | None = None, *, share: bool = False) -> Interval:
    """Return the mean of a measure of each picture, or of each prompt."""
    return interval(column.tolist(), named, share=share)


def change(measure: str, base: np.ndarray, final: np.ndarray, named: Sequence[str], *, share: bool = False) -> Change:
    """Return how a measure of each picture changed, pair by pair; `share` where it is 0 or 1."""
    both = ~(np.isnan(base) | np.isnan(final))
    ends = [mean_of(np.where(both, column, math.nan), named, share=share) for column in (base, final)]
    found = difference(base.tolist(), final.tolist(), named)
    zero = np.zeros(len(base))
    apart = [difference(zero.tolist(), np.where(both, column, math.nan).tolist(), named) for column in (base, final)]
    wide, narrow = math.hypot(*(one.high - one.low for one in apart)), found.high - found.low
    gain = wide / narrow if narrow else math.nan
    return Change(measure, ends[0], ends[1], found, share, 1, int(both.sum()), gain)


def _best_of(scores: Mapping[str, tuple[np.ndarray, np.ndarray]], prompts: Sequence[int]) -> list[Change]:
    """Return how often one of several pictures is right, of measures that are right or wrong."""
    found = []
    for name, both in scores.items():
        for k in BEST_OF[1:]:
            one, other = (covered(column, prompts, k) for column in both)
            if not (np.isnan(one).any() or np.isnan(other).any()):
                made = change(f"{name}, best of {k}", one, other, [str(n) for n in range(len(one))], share=True)
                found.append(replace(made, pictures=len(prompts), derived=True))
    return found


def _varied(
    plan: EvalPlan, base: Table, final: Table, features: Mapping[str, Mapping[str, np.ndarray]]
) -> list[Change]:
    """Return how the distance within a prompt changed, prompt by prompt."""
    found = []
    for title, extractor in plan.extractors.items():
        if extractor.names:
            continue
        one, other = (pairwise(features[title][t.subject], t.prompts, extractor.distance) for t in (base, final))
        if not np.isnan(one).all():
            made = change(f"diversity ({title})", one, other, [str(n) for n in range(len(one))])
            found.append(replace(made, pictures=len(base.names)))
    return found


def _nearer(base: Standing, final: Standing) -> list[Change]:
    """Return how the distance from the reference changed; both are estimates of their own."""
    found = []
    for title, ours in final.fidelity.items():
        limits = [one.limit for side in (base.fidelity[title], ours) for one in side if one.limit is not None]
        if len(limits) == 2:
            a, b = limits
            half = math.hypot(*((one.high - one.low) / 2 for one in limits))
            moved = Interval(b.mean - a.mean, b.mean - a.mean - half, b.mean - a.mean + half, b.n)
            found.append(Change(f"distance ({title})", a, b, moved, False, -1, b.n))
    return found


def _by_category(
    name: str, both: tuple[np.ndarray, np.ndarray], prompts: Sequence[int], categories: Sequence[str], *, share: bool
) -> dict[str, Change]:
    member = np.asarray([categories[prompt] for prompt in prompts])
    found = {}
    for category in dict.fromkeys(filter(None, categories)):
        own = member == category
        named = [str(prompt) for prompt, inside in zip(prompts, own, strict=True) if inside]
        found[category] = change(name, both[0][own], both[1][own], named, share=share)
    return found


def _gained(scores: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return what each row gained in the first reward; where that is the same, in the others a little."""
    first, *others = [final - base for base, final in scores.values()]
    scale = 1e-3 * max(float(np.nanstd(first)), 1e-9)
    for other in others:
        spread = float(np.nanstd(other))
        first = first + (scale * np.nan_to_num(other) / spread if spread else 0.0)
    return first


def _one_of_each(rows: Sequence[int], prompts: Sequence[int]) -> tuple[int, ...]:
    """Return the first rows, those of further prompts before a second one of a prompt."""
    seen: dict[int, int] = {}
    turns = []
    for row in rows:
        seen[prompts[row]] = seen.get(prompts[row], -1) + 1
        turns.append((seen[prompts[row]], row))
    return tuple(row for _, row in sorted(turns, key=lambda turn: turn[0])[:SHOWN])


def _won(base: np.ndarray, final: np.ndarray) -> float:
    both = ~(np.isnan(base) | np.isnan(final))
    return float(((final[both] > base[both]) + 0.5 * (final[both] == base[both])).mean()) if both.any() else math.nan
