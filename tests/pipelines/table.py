"""docs/pipelines.md: which check each pipeline of the zoo passes, written by the suite and compared with by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignment.preflight.doctor.laws_of_the_pipeline import CHECKS
from tests.pipelines.zoo import ZOO

PAGE = Path(__file__).parents[2] / "docs/pipelines.md"
PASSED, REFUSED = "✓", "no"
COLUMNS = [check.__name__.replace("_", " ") for check in CHECKS]

HEAD = """\
# Pipelines

Every pipeline below is trained by the same code: the pipeline is the adapter, and there is no line about any model. The
table is written by the test-suite (`make pipelines-table`), which builds each pipeline with tiny random weights and
makes the same checks on all. What it says of a class holds for every model of that class.

`visalign doctor --pipeline PATH --call height=... width=...` makes these checks on any pipeline, with its own weights:
tomorrow's model needs nothing from us to be looked at.

| check | what is looked at |
|---|---|
"""
BODY = """
{count} pipelines. ✓ holds; *no* cannot hold, for the reason below the table.

"""


class Cell(NamedTuple):
    """What one check came to on one pipeline.

    Attributes:
        pipeline: The member's name.
        kind: Its class.
        check: The check's name.
        mark: PASSED or REFUSED.
        reason: Why it cannot hold, as a user reads it.
    """

    pipeline: str
    kind: str
    check: str
    mark: str
    reason: str = ""


def write(cells: Sequence[Cell]) -> None:
    """Write the page; pipelines that were not run this time keep what they had."""
    marks = {(cell.pipeline, cell.check): cell for cell in cells}
    checks = [
        f"| {name} | {(check.__doc__ or '').splitlines()[0]} |" for name, check in zip(COLUMNS, CHECKS, strict=True)
    ]
    before = PAGE.read_text(encoding="utf-8").splitlines()
    lines = [f"| pipeline | {' | '.join(COLUMNS)} |", "|---|" + ":-:|" * len(COLUMNS)]
    reasons: list[str] = []
    for name in ZOO:
        told = name.replace("_", " ")
        if (name, COLUMNS[0]) not in marks:
            lines += [line for line in before if line.startswith(f"| {told} (")]
            reasons += [line for line in before if line.startswith(f"- {told}, ")]
            continue
        row = [marks[name, column] for column in COLUMNS]
        lines.append(f"| {told} (`{row[0].kind}`) | {' | '.join(cell.mark for cell in row)} |")
        reasons += [f"- {told}, {cell.check}: {cell.reason}" for cell in row if cell.reason]
    what = [f"- **{name.replace('_', ' ')}**: {(build.__doc__ or '').splitlines()[0]}" for name, build in ZOO.items()]
    body = [HEAD + "\n".join(checks), BODY.format(count=len(ZOO)) + "\n".join(lines), "", *reasons, ""]
    PAGE.write_text("\n".join([*body, "## What is special about each", "", *what, ""]), encoding="utf-8")


def read() -> dict[tuple[str, str], str]:
    """Return the page's mark for each (pipeline, check)."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
    heading = next(row for row in rows if row[0] == "pipeline")
    table = [row for row in rows if len(row) == len(heading) and row[0].endswith("`)")]
    return {
        (row[0].split(" (")[0].replace(" ", "_"), column): mark
        for row in table
        for column, mark in zip(heading[1:], row[1:], strict=True)
    }
