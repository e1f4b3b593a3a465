"""The curves of a report, as SVG that takes its colours from the page, so that it reads in light and in dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from alignment.reports.statistics import Interval

INK, FAINT, LINE = "#010101", "#020202", "#030303"
SERIES = ("#010011", "#010012", "#010013", "#010014", "#010015", "#010016")
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--muted)", LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}
"""Colours that stand for the page's own; matplotlib writes them, `_inline` swaps them."""

STYLE: dict[Any, Any] = {  # matplotlib spells its keys out as a type of their own
    "svg.fonttype": "none",
    "svg.hashsalt": "visalign",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "lines.linewidth": 1.6,
}
ABOUT = (0.1, 0.16, 0.87, 0.8)
"""Left, bottom, width and height of the axes, as shares of a figure, until it is known how large their labels are."""
PADDING = 3.0  # points around a figure
LEAST = 0.1  # of a figure that is left to axes, however long the names beside them are
LEGEND = {"frameon": False, "labelcolor": FAINT, "fontsize": 8.5}


@dataclass(frozen=True)
class Chart:
    """One picture of the report.

    Attributes:
        title: What is shown.
        note: How to read it.
        svg: The picture, ready to stand in a page.
    """

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Single:
    """A metric that has a chart of its own.

    Attributes:
        metric: Name in `metrics.jsonl`.
        title: What it is.
        note: How to read it.
        unit: What one on the scale is, in the metric's own unit.
        noisy: Whether a running mean helps to read it.
    """

    metric: str
    title: str
    note: str
    unit: float = 1.0
    noisy: bool = True


SINGLES = (
    Single("clip/fraction", "Clipped", "Share of terms whose ratio left the trust region, and so gave no gradient."),
    Single("kl/reference", "Distance to the reference", "KL divergence of a step from the policy at the start."),
    Single("grad/norm", "Gradient norm", "Before clipping; a jump here comes before trouble elsewhere."),
    Single("loss", "Loss", "Near zero for policy gradients by construction; it need not fall."),
    Single("reward/zero_std_fraction", "Groups without signal", "Share of groups whose samples all scored the same."),
    Single("reward/unscored_fraction", "Not scored", "Share of samples the reward could not score; they are left out."),
    Single("learning_rate", "Learning rate", "As the schedule set it.", noisy=False),
    Single("samples_per_second", "Samples per second", "Sampled, scored and learned from."),
    Single("memory/peak_bytes", "Peak memory (GiB)", "Over the run so far.", unit=2**30, noisy=False),
)
PHASES = ("rollout", "reward", "update")
"""What `seconds/total` is made of; the rest of it is shown as other."""
ASIDE = ("evaluation", "checkpoint")
LARGEST = 1e300
"""Size of a number up to which axes, bands and means over it still are numbers."""


class Columns:
    """The lines of `metrics.jsonl` as columns; a number that is missing, not finite or beyond `LARGEST` is NaN."""

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._lines = lines
        self.step = np.array([line["step"] for line in lines], dtype=np.float64)

    def __contains__(self, name: str) -> bool:
        return any(line.get(name) is not None for line in self._lines)

    def under(self, prefix: str) -> list[str]:
        """Return what follows `prefix` in the names that begin with it."""
        names = dict.fromkeys(name for line in self._lines for name in line)
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def constant(self, name: str) -> bool:
        """Return whether a metric never changed, and so needs no curve."""
        return bool(np.unique(self[name][~np.isnan(self[name])]).size < 2)

    def __getitem__(self, name: str) -> np.ndarray:
        values = np.array([math.nan if line.get(name) is None else line[name] for line in self._lines], np.float64)
        return np.where(np.abs(values) > LARGEST, np.nan, values)

    def beyond(self) -> list[str]:
        """Return the names of metrics that have a number beyond `LARGEST`."""
        return list(
            dict.fromkeys(
                name
                for line in self._lines
                for name, value in line.items()
                if isinstance(value, int | float) and abs(value) > LARGEST
            )
        )


def training_reward(columns: Columns, held_out: Mapping[int, Interval]) -> Chart:
    """Draw the reward of the training samples with the spread within a group, and held-out means over it."""
    figure, axes = new_axes()
    reward = columns["reward/mean"]
    if "reward/group_std" in columns:
        spread = columns["reward/group_std"]
        axes.fill_between(columns.step, reward - spread, reward + spread, color=SERIES[0], alpha=0.13, linewidth=0)
    axes.plot(columns.step, reward, color=SERIES[0], alpha=0.35, linewidth=1)
    axes.plot(columns.step, smooth(reward), color=SERIES[0], label="training")
    note = "Mean of each step's samples and its running mean; the band is one standard deviation within a group."
    if held_out:
        points(axes, held_out, SERIES[1], "held out, 95 %")
        axes.legend(loc="best", **LEGEND)
        note += " Dots are held-out prompts."
    return finished(figure, axes, "Training reward", note)


def held_out_score(metric: str, found: Mapping[int, Interval], columns: Columns) -> Chart:
    """Draw a held-out metric with its 95 % intervals, over the same number on the training samples if there is one."""
    figure, axes = new_axes()
    note = "Mean on held-out prompts with its 95 % interval, prompts resampled."
    part = f"reward/{metric}"
    if part in columns:
        axes.plot(columns.step, smooth(columns[part]), color=SERIES[0], alpha=0.6, label="training", linewidth=1.2)
        note += " The line is the training samples' running mean."
    points(axes, found, SERIES[1], "held out, 95 %")
    if part in columns:
        axes.legend(loc="best", **LEGEND)
    return finished(figure, axes, f"Held out: {metric}", note)


def phases(columns: Columns) -> Chart:
    """Draw where each step's seconds went, stacked."""
    figure, axes = new_axes()
    known = {name: np.nan_to_num(columns[f"seconds/{name}"]) for name in (*PHASES, *ASIDE)}
    other = np.maximum(0.0, np.nan_to_num(columns["seconds/total"]) - sum(known[name] for name in PHASES))
    edges = np.append(columns.step, columns.step[-1] + 1)
    bottom = np.zeros(len(columns.step))
    for (name, height), colour in zip({**known, "other": other}.items(), SERIES, strict=True):
        if height.any():
            axes.stairs(bottom + height, edges, baseline=bottom, fill=True, color=colour, alpha=0.85, label=name)
        bottom = bottom + height
    axes.set_ylim(0, None)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, handlelength=0.8, columnspacing=1.2, **LEGEND)
    return finished(
        figure,
        axes,
        "Seconds per step",
        "By phase, stacked; other is what no phase accounts for. Evaluations and checkpoints come on top.",
    )


def ratios(columns: Columns) -> Chart:
    """Draw the likelihood ratio between the policy that learns and the one that sampled."""
    figure, axes = new_axes()
    if "ratio/min" in columns and "ratio/max" in columns:
        axes.fill_between(columns.step, columns["ratio/min"], columns["ratio/max"], color=SERIES[0], alpha=0.18, lw=0)
    axes.plot(columns.step, columns["ratio/mean"], color=SERIES[0])
    axes.ticklabel_format(axis="y", useOffset=False)
    note = "Mean, and the band from the least to the greatest."
    if "ratio/first_error_max" in columns:
        note += f" At a step's first update it is off 1 by at most {np.nanmax(columns['ratio/first_error_max']):.1e}."
    return finished(figure, axes, "Likelihood ratio", note)


def conflicts(columns: Columns, pairs: Mapping[tuple[str, str], str]) -> Chart:
    """Draw which rewards pull against each other: the correlation of their credits, over the last quarter of the run.

    Args:
        columns: The run's metrics.
        pairs: Metric of each two rewards.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    figure, axes = new_axes()
    axes.grid(visible=False)
    for pair, metric in pairs.items():
        recent = columns[metric][-max(1, len(columns.step) // 4) :]
        if np.isnan(recent).all():
            continue
        r = float(np.nanmean(recent))
        if abs(r) > 1.01:  # no correlation; rounding alone stays far below
            continue
        for x, y in (pair, pair[::-1]):
            at = names.index(x), names.index(y)
            axes.add_patch(Rectangle(at, 1, 1, color=SERIES[0] if r > 0 else SERIES[1], alpha=0.75 * abs(r), lw=0))
            axes.text(at[0] + 0.5, at[1] + 0.5, f"{r:+.2f}", ha="center", va="center", color=INK)
    ticks = np.arange(len(names)) + 0.5
    axes.set(xlim=(0, len(names)), ylim=(len(names), 0), xticks=ticks, yticks=ticks, xlabel="")
    axes.set_xticklabels(names)
    axes.set_yticklabels(names)
    note = (
        "Correlation of the credits each two rewards would give alone, within groups, over the last quarter of the "
        "run. Below zero (orange) one praises what the other blames."
    )
    return finished(figure, axes, "Do the rewards agree?", note, steps=False)


def single(columns: Columns, which: Single) -> Chart:
    """Draw one metric over the steps."""
    figure, axes = new_axes()
    values = columns[which.metric] / which.unit
    if which.noisy:
        axes.plot(columns.step, values, color=SERIES[0], alpha=0.35, linewidth=1)
    axes.plot(columns.step, smooth(values) if which.noisy else values, color=SERIES[0])
    return finished(figure, axes, which.title, which.note)


def points(axes: Axes, found: Mapping[int, Interval], colour: str, label: str) -> None:
    """Draw means joined by a line, each with its interval; one that has no interval has no bar."""
    at = np.array([*found])
    mean = np.array([interval.mean for interval in found.values()])
    low = np.array([interval.low for interval in found.values()])
    high = np.array([interval.high for interval in found.values()])
    bars = np.nan_to_num(np.stack([mean - low, high - mean])).clip(0)
    axes.errorbar(at, mean, yerr=bars, color=colour, label=label, marker="o", markersize=4.5, capsize=2.5)


def smooth(values: np.ndarray) -> np.ndarray:
    """Return a centred running mean over a twentieth of the run, which leaves gaps out."""
    half = len(values) // 40
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([np.nan if np.isnan(window).all() else np.nanmean(window) for window in windows])


def new_axes() -> tuple[Figure, Axes]:
    """Return a figure in the page's style, and its axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.9))
        axes = figure.add_axes(ABOUT)
    axes.margins(x=0.02)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("step")
    return figure, axes


def finished(figure: Figure, axes: Axes, title: str, note: str, *, steps: bool = True) -> Chart:
    """Return a figure that was drawn as a chart of the page; with `steps` its bottom axis counts."""
    if steps:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    with matplotlib.rc_context(STYLE):
        make_room(figure, axes)
        buffer = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=unsaid)
    return Chart(title, note, _inline(buffer.getvalue(), re.sub(r"\W+", "-", title.lower())))


def make_room(figure: Figure, axes: Axes) -> None:
    """Make axes as large as what stands around them allows; matplotlib's engine would draw all of it twice more."""
    width, height = figure.bbox.size
    inner, outer = axes.bbox, axes.get_tightbbox(for_layout_only=True)
    assert outer is not None, "axes are visible"
    pad = PADDING * figure.dpi / 72
    left, bottom = inner.x0 - outer.x0 + pad, inner.y0 - outer.y0 + pad
    right, top = outer.x1 - inner.x1 + pad, outer.y1 - inner.y1 + pad
    axes.set_position((
        left / width, bottom / height, max(LEAST, 1 - (left + right) / width), max(LEAST, 1 - (bottom + top) / height)
    ))  # fmt: skip


def _inline(svg: str, prefix: str) -> str:
    """Return matplotlib's SVG file as an element of a page: its colours and fonts the page's, its ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None, "matplotlib writes a viewBox"
    svg = f'<svg {view.group(0)} aria-hidden="true">' + svg[svg.index(">") + 1 :]
    svg = svg.replace("xlink:href", "href")
    referred = set(re.findall(r"#([A-Za-z_][\w.-]*)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{prefix}-{found[1]}"' if found[1] in referred else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"\s*\n\s*", " ", svg)
