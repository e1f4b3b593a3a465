"""The picture of what recipes gained: a row a recipe, a dot a seed, a bar for the interval of their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from alignment.reports.statistics import over_runs

INK, FAINT, BAR, DOT = "#1d1e22", "#55575f", "#b7cdf2", "#2f6fdb"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "font.size": 10,
    "axes.edgecolor": "#b9bac0",
}


def draw_gains(gains: Mapping[str, Sequence[float]], what: str, file: Path) -> None:
    """Draw recipes from the largest mean gain to the smallest, and write the picture.

    Args:
        gains: Gain of each seed, in [-1, 1], by recipe.
        what: What is gained, for the axis.
        file: A PNG file to write.
    """
    ranked = sorted(gains.items(), key=lambda entry: sum(entry[1]) / len(entry[1]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.1 + 0.27 * len(ranked)), layout="constrained", dpi=160, facecolor="white")
        axes = figure.add_subplot()
    for row, (_, seeds) in enumerate(ranked):
        points = [100 * gain for gain in seeds]
        if len(points) > 1:
            spread = over_runs(points)
            axes.plot([spread.low, spread.high], [row, row], color=BAR, linewidth=6, solid_capstyle="butt")
            axes.plot([spread.mean], [row], "|", color=INK, markersize=11, markeredgewidth=2)
        axes.plot(points, [row] * len(points), "o", color=DOT, markersize=4, alpha=0.85)
    axes.axvline(0, color=FAINT, linewidth=0.9)
    axes.set_yticks(range(len(ranked)), [name for name, _ in ranked])
    axes.set_ylim(-0.7, len(ranked) - 0.3)
    axes.grid(axis="x", color="#e6e6e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=FAINT)
    axes.set_xlabel(f"gain of {what}, points: dots are seeds, bars 95 % intervals of their mean", color=FAINT)
    figure.savefig(file)
