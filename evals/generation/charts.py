"""The charts of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from alignment.reports.figures import LEGEND, SERIES, Chart, finished, new_axes
from alignment.reports.statistics import Interval
from evals.generation.compare import OnSuite
from evals.generation.verdicts import Change


def by_category(suite: str, measure: str, found: Mapping[str, Mapping[str, Change]]) -> Chart:
    """Draw how a measure changed in each category.

    Args:
        suite: Name of the suite.
        measure: What is measured.
        found: Its change by subject and category.
    """
    figure, axes = new_axes()
    categories = list(dict.fromkeys(name for changes in found.values() for name in changes))
    height = 0.8 / max(1, len(found))
    figure.set_size_inches(5.2, max(1.6, 0.6 + 0.28 * len(categories) * max(1, len(found) / 2)))
    for number, (subject, changes) in enumerate(found.items()):
        places = [row + (number - (len(found) - 1) / 2) * height for row, _ in enumerate(categories)]
        shares = 100 if all(change.share for change in changes.values()) else 1
        means = [shares * changes[name].change.mean for name in categories]
        ends = [[shares * abs(getattr(changes[name].change, end) - changes[name].change.mean) for name in categories]
                for end in ("low", "high")]  # fmt: skip
        bars = [[0.0 if math.isnan(value) else value for value in side] for side in ends]
        colour = SERIES[number % len(SERIES)]
        axes.barh(places, means, height=height * 0.9, color=colour, alpha=0.75, label=subject)
        axes.errorbar(means, places, xerr=bars, fmt="none", ecolor=colour, capsize=2, linewidth=1.2)
    axes.set_yticks(range(len(categories)), labels=categories)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=SERIES[-1], linewidth=1)
    points = all(change.share for changes in found.values() for change in changes.values())
    axes.set_xlabel("change, in points" if points else "change")
    if len(found) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, **LEGEND)
    note = (
        "Against the base, pair by pair, with 95 % intervals. A category by itself has fewer prompts, and is less sure."
    )
    return finished(figure, axes, f"{suite}: {measure} by category", note, steps=False)


def against_distance(suite: OnSuite, measure: str, extractor: str) -> Chart:
    """Draw a reward against the distance from the base: what was paid for it."""
    figure, axes = new_axes()
    places = [("", suite.standings[suite.base].scores.get(measure), Interval(0.0, 0.0, 0.0, 0))]
    places += [
        (name, suite.standings[name].scores.get(measure), beside.drift[extractor])
        for name, beside in suite.beside.items()
    ]
    for number, (name, score, drift) in enumerate(places):
        if score is None:
            continue
        bars = [[[_size(one, end)] for end in ("low", "high")] for one in (drift, score)]
        axes.errorbar(
            [drift.mean], [score.mean], xerr=bars[0], yerr=bars[1],
            fmt="o", color=SERIES[(number - 1) % len(SERIES)] if number else SERIES[-1], capsize=2.5, markersize=5.5,
            label=name or suite.base,
        )  # fmt: skip
    axes.margins(0.08)
    axes.set_xlabel(f"distance from {suite.base} ({extractor})")
    axes.legend(loc="best", **LEGEND)
    note = (
        "Mean distance from the base's picture of the same prompt and noise. Of two with one reward, take the left one."
    )
    return finished(figure, axes, f"{suite.name}: {measure} against distance", note, steps=False)


def by_strength(suite: OnSuite, measures: Sequence[str], extractor: str, strengths: Mapping[str, float]) -> Chart:
    """Draw what an adapter does at several strengths: its rewards, and the distance from the weakest.

    Args:
        suite: What was found.
        measures: Rewards that are drawn.
        extractor: What distance is drawn.
        strengths: Of each subject that has one.
    """
    figure, axes = new_axes()
    names = sorted((name for name in strengths if name in suite.standings), key=lambda name: strengths[name])
    at = [strengths[name] for name in names]
    for number, measure in enumerate(measures):
        found = [suite.standings[name].scores[measure] for name in names]
        bars = [[_size(one, end) for one in found] for end in ("low", "high")]
        axes.errorbar(at, [one.mean for one in found], yerr=bars, color=SERIES[number % 5], marker="o", markersize=4.5,
                      capsize=2.5, label=measure)  # fmt: skip
    axes.set_xlabel("strength of the adapter")
    drift = [suite.beside[name].drift[extractor].mean if name in suite.beside else 0.0 for name in names]
    other = axes.twinx()
    other.plot(at, drift, color=SERIES[-1], linestyle="--", label=f"distance ({extractor}), right")
    other.grid(visible=False)
    other.tick_params(length=0)
    lines = [line for one in (axes, other) for line in one.get_legend_handles_labels()[0]]
    axes.legend(lines, [*measures, f"distance ({extractor}), right"], loc="best", **LEGEND)
    note = "Where the reward has levelled off and the distance goes on, the adapter is too strong."
    return finished(figure, axes, f"{suite.name}: strength", note, steps=False)


def _size(interval: Interval, end: str) -> float:
    size = abs((interval.low if end == "low" else interval.high) - interval.mean)
    return 0.0 if math.isnan(size) else size
