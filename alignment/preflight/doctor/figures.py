"""The doctor's pictures: the report's charts, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alignment.reports.figures import STYLE, smooth
from alignment.reports.statistics import Interval

PAPER, INK, FAINT, LINE = "#ffffff", "#1c1d21", "#686b75", "#e3e3df"
BLUE, ORANGE, GREY = "#2f6fde", "#d2691e", "#b9bbc2"
"""The report's colours by day."""
DRESS: dict[Any, Any] = STYLE | {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 10.5,
    "grid.color": LINE,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
}
BAR: dict[str, Any] = {"ecolor": INK, "capsize": 3, "error_kw": {"elinewidth": 1.2, "capthick": 1.2}}
LEGEND: dict[str, Any] = {"frameon": False, "labelcolor": FAINT, "fontsize": 8.5}
SAID: dict[str, Any] = {"va": "center", "fontsize": 8.5, "bbox": {"facecolor": PAPER, "edgecolor": "none", "pad": 1}}
DPI = 180


def signal(path: Path, title: str, ratios: Mapping[str, tuple[float, float]], found: Sequence[bool]) -> None:
    """Draw a bar a step with its standard error; steps where a signal was found stand out.

    Args:
        path: The PNG to write.
        title: What is shown.
        ratios: Ratio and standard error by the label of its bar.
        found: Whether each is above twice its error.
    """
    with matplotlib.rc_context(DRESS):
        figure = Figure(figsize=(1.6 + 0.85 * max(4, len(ratios)), 3.7), layout="constrained")
        axes = _bare(figure.add_subplot(), title)
        at = np.arange(len(ratios))
        value, error = np.array([*ratios.values()]).T
        axes.bar(at, value, width=0.62, color=[BLUE if shows else GREY for shows in found], yerr=error, **BAR)
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.set_xticks(at, [*ratios])
        axes.set_ylabel("signal / noise of a batch's gradient")
        handles = [Patch(color=BLUE), Patch(color=GREY)]
        axes.legend(handles, ["above 2 standard errors", "no signal found"], loc="upper right", **LEGEND)
        axes.margins(y=0.12)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def damage(path: Path, curves: Mapping[str, Sequence[float]], changes: Mapping[str, Interval], after: str) -> None:
    """Draw both trainings: the reward of their samples over the steps, and what each changed on held-out prompts.

    Args:
        path: The PNG to write.
        curves: Mean reward of each step's samples, for "real" and "shuffled".
        changes: Change of the held-out reward, for the same.
        after: How long and how fast they trained.
    """
    colours = dict(zip(changes, (BLUE, ORANGE), strict=True))
    with matplotlib.rc_context(DRESS):
        figure = Figure(figsize=(8.6, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
        _bare(left, "Reward of training samples")
        for name, curve in curves.items():
            values, steps = np.asarray(curve, dtype=np.float64), np.arange(1, len(curve) + 1)
            left.plot(steps, values, color=colours[name], alpha=0.25, linewidth=1)
            left.plot(steps, _trend(values), color=colours[name], label=f"{name} advantages")
        left.set_xlabel("step")
        left.xaxis.get_major_locator().set_params(integer=True)
        left.legend(loc="best", **LEGEND)
        _bare(right, "Held out: change of the reward")
        right.axhline(0, color=FAINT, linewidth=0.8)
        for at, (name, change) in enumerate(changes.items()):
            style = {"color": colours[name], "marker": "o", "markersize": 7, "capsize": 4}
            bar = np.nan_to_num([[change.mean - change.low], [change.high - change.mean]]).clip(0)
            right.errorbar(at, change.mean, yerr=bar, **style)
            said = f"{change.mean:+.3f}\n[{change.low:+.3f}, {change.high:+.3f}]"
            right.annotate(said, (at, change.mean), (11, 0), textcoords="offset points", **SAID)
        right.set_xticks(range(len(changes)), [*changes])
        right.set_xlim(-0.4, len(changes) - 0.1)
        right.set_xlabel(f"advantages; {after}, 95 % intervals")
        figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _trend(values: np.ndarray) -> np.ndarray:
    """Return a running mean over a tenth of a short training, which `smooth` would leave as it is."""
    half = max(1, len(values) // 10)
    windows: list[Any] = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([np.nanmean(window) for window in windows]) if len(values) < 40 else smooth(values)


def _bare(axes: Axes, title: str) -> Axes:
    axes.set_title(title, pad=10)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    return axes
