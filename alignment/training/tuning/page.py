"""The page of a study: what was tried, the best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.reports import run_folder


@dataclass(frozen=True)
class Tried:
    """One setting.

    Attributes:
        number: Of the trial.
        params: Value of each searched field.
        steps: The longest it ran.
        value: What it reached by then; None where it could not run.
        refused: Why it could not.
    """

    number: int
    params: Mapping[str, float]
    steps: int
    value: float | None
    refused: str | None = None


def write_page(file: Path, metric: str, tried: Sequence[Tried]) -> None:
    """Write the table: those that ran longest first, of these the best first."""
    ranked = sorted(tried, key=lambda t: (t.value is None, -t.steps, -(t.value or 0.0)))
    fields = list(dict.fromkeys(field for one in tried for field in one.params))
    lines = [f"| trial | {' | '.join(fields)} | steps | {metric} |", "|---" * (len(fields) + 3) + "|"]
    for one in ranked:
        reached = one.refused if one.value is None else f"{one.value:.4f}"
        lines.append(
            f"| {one.number} | {' | '.join(f'{one.params[f]:.4g}' for f in fields)} | {one.steps} | {reached} |"
        )
    best = " ".join(f"{field}={value!r}" for field, value in ranked[0].params.items())
    said = (
        "The longest runs come first, and of these the best. It was chosen on these prompts, its number is too good: "
        "measure it on others, with more seeds than one."
    )
    text = "\n".join(("# What was tried", "", said, "", f"    visalign train CONFIG {best}", "", *lines, ""))
    run_folder.write_atomically(file, text.encode())
