"""What papers claim of their methods, and whether it holds on the tasks that were run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from alignment.reports.statistics import Interval, over_runs
from examples.benchmarks.gains_page import Row, parts, read_rows

HEADINGS = ("claim", "of", "task", "recipe", "against", "our number, 95 % over seeds", "verdict")
SEEDS = 5
"""Runs of each side that a verdict takes."""
UNSURE = "bar reached, inside the interval"
"""Verdict where standard errors suffice and the 95 % interval of so few runs, which is wider, does not."""


@dataclass(frozen=True)
class Claim:
    """One row.

    Attributes:
        says: The claim.
        source: Whose.
        task: Section of the page whose rows answer it; empty where no task does.
        recipe: The method's.
        against: Recipe it is compared with, seed by seed; empty compares with its own base.
        least: What the mean has to reach.
        errors: Standard errors by which the mean has to be above that; below 0: by which it may miss it.
    """

    says: str
    source: str
    task: str = ""
    recipe: str = ""
    against: str = ""
    least: float = 0.0
    errors: float = 2.0

    def line(self, rows: Mapping[str, Row], link: str) -> str:
        """Return the claim's row in Markdown, as the rows of its task, which stand behind `link`, have it."""
        found = self.found(rows)
        number = "" if found is None else f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        names = (f"`{name}`" if name else "" for name in (self.recipe, self.against or "its base"))
        task = f"[{self.task}]({link})" if self.task else "none here"
        shown = tuple(names) if self.task else ("", "")
        return f"| {' | '.join((self.says, self.source, task, *shown, number, self.verdict(rows)))} |"

    def found(self, rows: Mapping[str, Row]) -> Interval | None:
        """Return by how much the method is ahead, over seeds; None where a side was not run."""
        ahead = self._ahead(rows)
        return over_runs(ahead) if len(ahead) > 1 else None

    def verdict(self, rows: Mapping[str, Row]) -> str:
        """Say whether it holds."""
        ahead = self._ahead(rows)
        if len(ahead) < SEEDS:
            return "not tested" if not ahead else f"not tested: {len(ahead)} of {SEEDS} seeds"
        error = statistics.stdev(ahead) / math.sqrt(len(ahead))
        if statistics.mean(ahead) - self.errors * error < self.least:
            return "does not hold here"
        return UNSURE if self.errors > 0 and over_runs(ahead).low < self.least else "**holds**"

    def _ahead(self, rows: Mapping[str, Row]) -> list[float]:
        if self.recipe not in rows or (self.against and self.against not in rows):
            return []
        gains = rows[self.recipe].gains
        other = rows[self.against].gains if self.against else (0.0,) * len(gains)
        return [a - b for a, b in zip(gains, other, strict=False)]


def read_claims(file: Path) -> list[Claim]:
    """Read the claims of a file, one a mapping."""
    return [Claim(**record) for record in yaml.safe_load(file.read_text(encoding="utf-8"))]


def write_claims(page: Path, section: str, claims: Sequence[Claim], pages: Mapping[str, Path]) -> None:
    """Put a row for each claim into a section of a page.

    Args:
        page: Where they go.
        section: Of that page.
        claims: All of them.
        pages: The page beside it on which the rows of each task stand, in a section of the task's name.
    """
    rows = {task: {row.recipe: row for row in read_rows(file, task)} for task, file in pages.items()}
    links = {task: f"#{task}" if file == page else file.name for task, file in pages.items()}
    lines = [claim.line(rows.get(claim.task, {}), links.get(claim.task, "")) for claim in claims]
    before, _, after = parts(page, section)
    table = "\n".join((f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|", *lines))
    page.write_text(f"{before}\n{table}\n{after}", encoding="utf-8")
