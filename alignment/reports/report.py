"""One page that shows a run, made from its folder alone: opens from the disk, fetches nothing, runs no script."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from alignment.errors import DataError
from alignment.reports import figures, run_folder
from alignment.reports.figures import Chart, Columns
from alignment.reports.page import PageMedium, data_uri, shown, template
from alignment.reports.pictures import encode, printable
from alignment.reports.progress import duration
from alignment.reports.record import intervals
from alignment.reports.run_folder import BASE, FINAL, Evaluated
from alignment.reports.statistics import Interval, difference
from alignment.reports.terminal import show

ABOUT_ALL = ("mean", "group_std", "zero_std_fraction", "unscored_fraction")
"""Metrics of a reward in the record that are not parts of it."""
SAMPLE_GRIDS = 4
SAMPLE_WIDTH = 1400


@dataclass(frozen=True)
class MetricChange:
    """A held-out metric before and after.

    Attributes:
        metric: Its name.
        base: Mean before.
        final: Mean after.
        change: Mean paired difference.
        share: Whether every score is 0 or 1, so that the mean is a share of the pictures.
    """

    metric: str
    base: Interval
    final: Interval
    change: Interval
    share: bool

    @property
    def verdict(self) -> str:
        """`better` or `worse` when the interval of the difference lies on one side of zero, else `even`."""
        return "better" if self.change.low > 0 else "worse" if self.change.high < 0 else "even"

    def position(self, value: float) -> float:
        """Return where `value` lies, in percent, on a scale that holds both intervals."""
        ends = [self.base.mean, self.final.mean, self.base.low, self.final.low, self.base.high, self.final.high]
        known = [end for end in ends if not math.isnan(end)]
        low, high = min(known, default=0.0), max(known, default=1.0)
        return 50.0 if high <= low or math.isnan(value) else 4 + 92 * (value - low) / (high - low)

    def number(self, value: float) -> str:
        """Return a score as text; a share in percent."""
        if math.isnan(value):
            return "n/a"
        return f"{100 * value:.1f} %" if self.share else f"{value:.3f}"

    def between(self, interval: Interval) -> str:
        """Return the ends of an interval as text."""
        return f"[{self.number(interval.low)}, {self.number(interval.high)}]".replace(" %", "")

    def signed(self, value: float) -> str:
        """Return a difference as text; that of a share in percentage points."""
        if math.isnan(value):
            return "n/a"
        return f"{100 * value:+.1f}" if self.share else f"{value:+.3f}"


@dataclass(frozen=True)
class PagePair:
    """The same prompt and noise, before and after."""

    prompt: str
    base: PageMedium
    final: PageMedium


def write(folder: Path) -> Path:
    """Write `report.html` of the run in `folder` and return its path.

    A run that is not over gets a report of what there is.

    Raises:
        DataError: If the folder holds no run, or a damaged one.
    """
    columns = Columns(run_folder.read_metrics(folder / run_folder.METRICS))
    evaluations = run_folder.read_evaluations(folder)
    if not len(columns.step) and not evaluations:
        raise DataError(f"{folder} holds no run: {run_folder.METRICS} and {run_folder.EVALUATIONS}/ have nothing")
    damaged = [
        f"{run_folder.METRICS}: {name} has numbers beyond {figures.LARGEST:g}, too large for a chart: they are left out"
        for name in columns.beyond()
    ]
    config = _text(folder / run_folder.CONFIG, damaged)
    run = _mapping_in(config, damaged)
    summary = _summary(folder / run_folder.SUMMARY, damaged)
    before, after = evaluations.get(BASE), evaluations.get(FINAL)
    ends = (before[1], after[1]) if before and after else None
    page = template("alignment.reports", "report_template.html").render(
        name=folder.resolve().name,
        finished=bool(summary),
        facts=_facts(run, summary, columns),
        comparisons=_comparisons(*ends) if ends else [],
        prompts=len(set(ends[1].prompts)) if ends else 0,
        curves=_curves(columns, evaluations),
        pairs=_pairs(*ends) if ends else [],
        health=_health(columns),
        constants=_constants(columns),
        samples=_samples(folder, damaged, credit=False),
        credits=_samples(folder, damaged, credit=True),
        config=config,
        environment=_text(folder / run_folder.ENVIRONMENT, damaged),
        alarms=run_folder.read_alarms(folder),
        damaged=damaged,
    )
    path = folder / run_folder.REPORT
    run_folder.write_atomically(path, page.encode("utf-8", errors="replace"))
    return path


def main(run_folder: str) -> int:
    """Write the report of a run, print its path and return the exit code."""
    show(str(write(Path(run_folder))))
    return 0


def _text(path: Path, damaged: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        damaged.append(f"{path.name} cannot be read: {error.strerror}")
        return ""


def _mapping_in(config: str, damaged: list[str]) -> dict[str, Any]:
    """Return the configuration; empty, and named among what is damaged, where the text is none."""
    try:
        node = yaml.compose(config)  # ends early where the text is too deep, over which a scan alone takes minutes
        # A run's has no tags, and one over a value of another type raises what its constructor happens to raise.
        tagged = "!" in config and any(isinstance(token, yaml.TagToken) for token in yaml.scan(config))
        run = None if tagged else yaml.SafeLoader("").construct_document(node) if node else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        run = None
    if isinstance(run, dict):
        return run
    damaged.append(f"{run_folder.CONFIG} is not the YAML of a run")
    return {}


def _summary(path: Path, damaged: list[str]) -> dict[str, float]:
    """Return the numbers of the run's summary; what is not a number is named among what is damaged."""
    try:
        found = run_folder.read_json(path) if path.exists() else {}
    except DataError as error:
        damaged.append(str(error))
        return {}
    if not isinstance(found, dict):
        damaged.append(f"{path.name} is not a JSON object")
        return {}
    known = ("seed", "steps", "wall_seconds", "peak_memory_bytes")
    numbers = {
        key: found[key] for key in known if isinstance(found.get(key), int | float) and math.isfinite(found[key])
    }
    damaged += [f"{path.name} has no number under {key}" for key in known if found and key not in numbers]
    return numbers


def _below(value: object, *path: str) -> Any:
    """Return what stands under a path of keys; None where something on the way is not a mapping, or lacks the key."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _facts(run: Mapping[str, Any], summary: Mapping[str, float], columns: Columns) -> list[tuple[str, str]]:
    """Return what was run, in a few words per entry; what the configuration does not hold is left out."""
    lora, rank = _below(run, "policy", "lora"), _below(run, "policy", "lora", "rank")
    adapted = "LoRA" if rank is None else f"LoRA, rank {rank}"
    whole = "full fine-tuning" if _below(run, "policy") else None
    labels = {
        "Pipeline": _below(run, "policy", "pipeline"),
        "Training": whole if lora is None else adapted,
        "Objective": _below(run, "objective", "type"),
        "Source": _below(run, "source", "type"),
        "Reward": _below(run, "source", "reward", "type"),
        "Seed": summary.get("seed", run.get("seed")),
        "Steps": summary.get("steps", len(columns.step)),
        "Time": duration(summary["wall_seconds"]) if "wall_seconds" in summary else None,
        "Peak memory": f"{summary['peak_memory_bytes'] / 2**30:.2f} GiB" if "peak_memory_bytes" in summary else None,
    }
    return [(label, str(value)) for label, value in labels.items() if value is not None]


def _comparisons(base: Evaluated, final: Evaluated) -> list[MetricChange]:
    if base.prompts != final.prompts or not torch.equal(base.seeds, final.seeds):
        raise DataError("evaluation/base.json and final.json hold different prompts or seeds, so they do not pair")
    before, after = intervals(base), intervals(final)
    result = []
    for metric in (name for name in after if name in before):
        ends = [base.scores[metric].tolist(), final.scores[metric].tolist()]
        share = all(value in (0.0, 1.0) or math.isnan(value) for scores in ends for value in scores)
        change = difference(ends[0], ends[1], base.prompts)
        result.append(MetricChange(metric, before[metric], after[metric], change, share))
    return result


def _curves(columns: Columns, evaluations: Mapping[str, tuple[int, Evaluated]]) -> list[Chart]:
    found: dict[str, dict[int, Interval]] = {}
    for step, result in evaluations.values():
        for metric, interval in intervals(result).items():
            found.setdefault(metric, {})[step] = interval
    charts = [
        figures.held_out_score(metric, points, columns)
        for metric, points in found.items()
        if len(points) > 1 and metric != "reward"
    ]
    if "reward/mean" in columns:
        charts.insert(0, figures.training_reward(columns, found.get("reward", {})))
    parts = [name for name in columns.under("reward/") if name not in ABOUT_ALL]
    note = "Mean of each step's samples and its running mean, this part of the reward alone."
    charts += [
        figures.single(columns, figures.Single(f"reward/{part}", f"Training: {part}", note))
        for part in parts
        if len(found.get(part, ())) < 2 and f"reward/{part}" in columns
    ]
    pairs = {pair: f"conflict/{'~'.join(pair)}" for pair in combinations(parts, 2)}
    known = {pair: metric for pair, metric in pairs.items() if metric in columns}
    return [*charts, figures.conflicts(columns, known)] if known else charts


def _health(columns: Columns) -> list[Chart]:
    charts = [figures.phases(columns)] if "seconds/total" in columns else []
    if "ratio/mean" in columns:
        charts.append(figures.ratios(columns))
    moved = [which for which in figures.SINGLES if which.metric in columns and not columns.constant(which.metric)]
    return charts + [figures.single(columns, which) for which in moved]


def _constants(columns: Columns) -> list[tuple[str, str]]:
    """Return the metrics that never changed, for which a line of text is better than a curve."""
    still = [which for which in figures.SINGLES if which.metric in columns and columns.constant(which.metric)]
    return [(which.title, f"{np.nanmax(columns[which.metric]) / which.unit:.4g}") for which in still]


def _pairs(base: Evaluated, final: Evaluated) -> list[PagePair]:
    rows = range(min(len(base.media), len(final.media)))
    return [PagePair(printable(final.prompts[row]), _shown(base, row), _shown(final, row)) for row in rows]


def _shown(result: Evaluated, row: int) -> PageMedium:
    scores = tuple(
        (metric, "not scored" if math.isnan(score[row]) else f"{score[row].item():.3g}")
        for metric, score in result.scores.items()
    )
    return shown(result.media[row : row + 1], scores)


def _samples(folder: Path, damaged: list[str], *, credit: bool) -> list[tuple[str, PageMedium]]:
    """Return a few sample grids, or what shows where their credit went, from the run's first to its last.

    What is not a picture is left out, and named among what is damaged.
    """
    found = sorted((folder / run_folder.SAMPLES).glob("[!.]*.*"))
    every = [path for path in found if path.stem.endswith(f"-{run_folder.CREDIT}") is credit]
    films = {path.stem for path in every if path.suffix == ".mp4"}
    files = [path for path in every if path.suffix == ".mp4" or path.stem not in films]
    last = len(files) - 1
    picked = dict.fromkeys(round(last * k / max(1, SAMPLE_GRIDS - 1)) for k in range(SAMPLE_GRIDS)) if files else {}
    grids = []
    for path in (files[index] for index in picked):
        try:
            grids.append((path.stem, _sample(path)))
        except DataError as error:
            damaged.append(str(error))
    return grids


def _sample(path: Path) -> PageMedium:
    if path.suffix == ".mp4":
        sheet = path.with_suffix(".png")
        still = _embedded(sheet) if sheet.exists() else ""
        return PageMedium(data_uri("video/mp4", _bytes(path)), moving=True, sheet=still)
    return PageMedium(_embedded(path), moving=False)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"samples/{path.name} cannot be read: {error.strerror}") from error


def _embedded(path: Path) -> str:
    try:
        picture = Image.open(io.BytesIO(_bytes(path)), formats=("PNG",)).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"samples/{path.name} is not a picture that can be read") from error
    picture.thumbnail((SAMPLE_WIDTH, 10 * SAMPLE_WIDTH))
    return data_uri("image/jpeg", encode(picture, "JPEG"))
