"""The table of what recipes gained, in a page of Markdown: it is measured recipe by recipe, and grows so."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.reports.statistics import over_runs
from examples.benchmarks.gains_picture import draw_gains

HEADINGS = ("recipe", "steps", "training s", "before", "after", "gain of each seed", "mean gain, 95 % over seeds")


@dataclass(frozen=True)
class Row:
    """What a recipe did, on a few seeds.

    Attributes:
        recipe: Its name.
        steps: Training steps of each seed.
        seconds: Training time, the mean of the seeds.
        before: Held-out metric before, in [0, 1], the mean of the seeds.
        after: The same after training.
        gains: By how much it rose with each seed.
    """

    recipe: str
    steps: tuple[int, ...]
    seconds: float
    before: float
    after: float
    gains: tuple[float, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """What a table shows under `HEADINGS`, without the recipe."""
        spread = over_runs(self.gains) if len(self.gains) > 1 else None
        return (
            " ".join(map(str, self.steps)),
            f"{self.seconds:.0f}",
            f"{self.before:.3f}",
            f"{self.after:.3f}",
            " ".join(f"{gain:+.3f}" for gain in self.gains),
            "" if spread is None else f"{spread.mean:+.3f} [{spread.low:+.3f}, {spread.high:+.3f}]",
        )

    def line(self, folder: str) -> str:
        """Return the row in Markdown, with a link to the recipe in `folder`."""
        return f"| {' | '.join((f'[`{self.recipe}`]({folder}/{self.recipe}.yaml)', *self.cells))} |"

    @staticmethod
    def read(line: str) -> Row:
        """Return what `line` wrote, as exactly as it is printed."""
        recipe, steps, seconds, before, after, gains = (cell.strip() for cell in line.split("|")[1:7])
        return Row(
            recipe.split("`")[1],
            tuple(map(int, steps.split())),
            float(seconds),
            float(before),
            float(after),
            tuple(map(float, gains.split())),
        )


def write_rows(file: Path, section: str, rows: Sequence[Row], metric: str, folder: str, below: str) -> None:
    """Put rows into a section of a page, and draw all that then stand there beside the page.

    Rows of other recipes stay; what is around the section, too.

    Args:
        file: The page, with the lines `<!-- SECTION -->` and `<!-- end of SECTION -->`.
        section: Its part.
        rows: New rows, or new numbers of old ones.
        metric: What is gained.
        folder: Where recipes lie, seen from the page.
        below: A line under the table.

    Raises:
        SystemExit: If the page has no such marks.
    """
    before, _, after = parts(file, section)
    every = {row.recipe: row for row in [*read_rows(file, section), *rows]}
    ranked = sorted(every.values(), key=lambda row: (-statistics.mean(row.gains), row.recipe))
    picture = file.with_name(f"{file.stem}_{section}.png")
    draw_gains({row.recipe: row.gains for row in ranked}, metric, picture)
    table = [f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|", *(row.line(folder) for row in ranked)]
    told = "\n".join((f"![What each seed gained]({picture.name})", "", *table, "", below))
    file.write_text(f"{before}\n{told}\n{after}", encoding="utf-8")


def read_rows(file: Path, section: str) -> list[Row]:
    """Return the rows that stand in a section of a page, as exactly as they are printed."""
    return [Row.read(line) for line in parts(file, section)[1].splitlines() if line.startswith("| [")]


def parts(file: Path, section: str) -> tuple[str, str, str]:
    """Return the page up to the first mark, what is between the two, and the page from the second one on."""
    text = file.read_text(encoding="utf-8")
    begin, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"{file} has no place for the table {section!r}: it needs the lines {begin} and {end}")
    before, rest = text.split(begin, 1)
    inside, after = rest.split(end, 1)
    return before + begin, inside, end + after
