"""The before/after table that ends a run."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich.markup import escape
from rich.table import Table

from alignment.reports.console import Console


def before_after(summary: Mapping[str, Any]) -> str:
    """Return the table of a `summary.json`: each metric before and after, with 95 % intervals."""
    table = Table(title=f"held-out prompts, after {summary['steps']} steps in {summary['wall_seconds']:.0f} s")
    for heading in ("metric", "before", "after", "change", "pictures"):
        table.add_column(heading, justify="left" if heading == "metric" else "right")
    for metric, ends in summary["evaluation"].items():
        base, final = ends.get("base"), ends.get("final")
        means = [end["mean"] for end in (base, final) if end is not None and end["mean"] is not None]
        change = f"{means[1] - means[0]:+.3f}" if len(means) == 2 else ""
        table.add_row(escape(metric), _cell(base), _cell(final), change, str((final or base)["n"]))
    text = StringIO()
    Console(file=text, width=100).print(table)
    return text.getvalue().rstrip()


def _cell(end: Mapping[str, Any] | None) -> str:
    if end is None or end["mean"] is None:
        return ""
    # One prompt alone has no interval.
    return f"{end['mean']:.3f}" if end["low"] is None else f"{end['mean']:.3f} [{end['low']:.3f}, {end['high']:.3f}]"
