"""A bench as people look at it: a table in the terminal, one self-contained page, and JSON."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from rich.box import SIMPLE_HEAD
from rich.table import Table

from alignment.errors import EnvironmentProblem
from alignment.reports.pictures import encode, frames, printable
from alignment.reports.statistics import Interval
from evals.bench import Bench, worst
from evals.medium import Medium

JSON, PAGE = "bench.json", "report.html"
WORST = 6
"""Disagreements with people that the page shows for each model."""
_WIDEST = 256


def table(bench: Bench) -> Table:
    """Return the summary, the most accurate model first."""
    # Without lines and with little air between columns, so that eighty characters hold a short name's whole row.
    made = Table(
        title=f"{bench.benchmark}: {len(bench.comparisons)} comparisons", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    shares = ("accuracy", "ties", "reads", "turned", "hacked")
    for heading in ("reward", "accuracy", "ties", "tau", "reads", "turned", "hacked", "media/s", "GiB"):
        made.add_column(
            f"{heading}\n%" if heading in shares else heading, justify="left" if heading == "reward" else "right"
        )
    for name in ordered(bench):
        m = bench.measured[name]
        made.add_row(
            name,
            percent(m.agreement.accuracy),
            _mean(m.agreement.with_ties),
            number(m.agreement.tau),
            _mean(m.reads),
            "n/a" if m.turned is None else number(100 * m.turned, 1),
            _mean(m.hackability),
            f"{m.per_second:.1f}",
            f"{m.peak_memory_bytes / 2**30:.1f}",
        )
    return made


def ordered(bench: Bench) -> list[str]:
    """Return the models' names, the most accurate first; those that decided nothing last."""
    accuracy = {name: m.agreement.accuracy.mean for name, m in bench.measured.items()}
    return sorted(accuracy, key=lambda name: -math.inf if math.isnan(accuracy[name]) else accuracy[name], reverse=True)


def prepare(folder: Path) -> None:
    """Make the folder of the results; asked for before hours of scoring, too.

    Raises:
        EnvironmentProblem: If that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"--output {folder} cannot be made: {error.strerror}; choose another") from error


def write(bench: Bench, folder: Path, conditions: dict[str, Any]) -> None:
    """Write `bench.json` and `report.html` into `folder`.

    Args:
        bench: The results.
        folder: Made where it is not there.
        conditions: Where and how it was measured, for comparisons.
    """
    prepare(folder)
    (folder / JSON).write_text(json.dumps(as_json(bench, conditions), indent=2, allow_nan=False), encoding="utf-8")
    text = resources.files("evals").joinpath("bench_template.html").read_text(encoding="utf-8")
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    made.filters.update(percent=percent, number=number)
    page = made.from_string(text).render(
        bench=bench, names=ordered(bench), worst={name: _shown(bench, name) for name in bench.measured},
        probes=next((m.probes for m in bench.measured.values() if m.probes), {}), conditions=conditions,
        parts=sorted({c.part for c in bench.comparisons if c.part and c.human}),
    )  # fmt: skip
    (folder / PAGE).write_text(page, encoding="utf-8")


def as_json(bench: Bench, conditions: dict[str, Any]) -> dict[str, Any]:
    """Return all results; what is not a finite number is null."""
    comparisons = [
        {"prompt": c.prompt, "first": c.first.name, "second": c.second.name, "human": c.human, "part": c.part}
        for c in bench.comparisons
    ]
    found = {
        "benchmark": bench.benchmark,
        "conditions": conditions,
        "rewards": {name: dataclasses.asdict(bench.measured[name]) for name in ordered(bench)},
        "concord": [{"one": a, "other": b, **dataclasses.asdict(c)} for (a, b), c in bench.concord.items()],
        "comparisons": comparisons,
    }
    return _finite(found)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(share: Interval | None) -> str:
    """Return a share with its interval, in percent."""
    if share is None or math.isnan(share.mean):
        return "n/a"
    if math.isnan(share.low):
        return f"{100 * share.mean:.1f}"
    return f"{100 * share.mean:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _mean(share: Interval | None) -> str:
    return percent(share).partition(" ")[0]


def number(value: float, places: int = 2) -> str:
    """Return a number as text; one that is none as such."""
    return "n/a" if math.isnan(value) else f"{value:.{places}f}"


def _shown(bench: Bench, name: str) -> list[dict[str, Any]]:
    """Return a model's worst disagreements with people, with pictures."""
    found = bench.measured[name]
    shown = []
    for i in worst(found, bench.comparisons, WORST):
        c = bench.comparisons[i]
        better, other = (c.first, c.second) if c.human > 0 else (c.second, c.first)
        margin = -abs(found.margins[i]) / found.spread if found.spread else 0.0
        shown.append(
            {
                "prompt": printable(c.prompt)[:200], "part": c.part, "margin": margin,
                "people": _uri(better), "model": _uri(other),
            }
        )  # fmt: skip
    return shown


def _uri(medium: Medium) -> str:
    """Return the first frame as a data URI, small enough for a page."""
    picture = frames(medium.pixels(frames=1))[0]
    picture.thumbnail((_WIDEST, _WIDEST))
    return "data:image/png;base64," + base64.b64encode(encode(picture)).decode()
