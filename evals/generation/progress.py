"""How far a comparison is: a bar on a terminal with the time left, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from alignment.reports.console import Console
from alignment.reports.progress import duration
from evals.generation.subjects import REFERENCE


class Bar:
    """Shows a stage's work, one line per subject or reward; what it takes is told once the first unit is done."""

    def __init__(self, *, quiet: bool) -> None:
        """Begin with nothing; `quiet` shows nothing."""
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._left: dict[str, int] = {}
        self._stage, self._first, self._since = "", True, 0.0

    def begin(self, stage: str, work: Mapping[str, int]) -> None:
        """Show the work of a stage.

        Args:
            stage: Its name.
            work: Pictures to do, by what they are done for.
        """
        self.end()
        self._stage, self._first = stage, True
        self._left = {name: count for name, count in work.items() if count}
        if not self._left:
            return
        self.say(f"{stage}: {', '.join(f'{count:,} for {name}' for name, count in self._left.items())}")
        if self._console.is_terminal:
            text = TextColumn("{task.description}", markup=False)
            columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True))
            self._progress = Progress(*columns, console=self._console)
            self._tasks = {name: self._progress.add_task(name, total=n) for name, n in self._left.items()}
            self._progress.start()

    def ready(self) -> None:
        """Start the clock: what is loaded once is loaded."""
        self._since = time.monotonic()

    def advance(self, name: str, count: int) -> None:
        """Show that so many more are done; after the first, say what the rest is going to take."""
        self._left[name] -= count
        if self._progress is not None:
            self._progress.advance(self._tasks[name], count)
        left = sum(number for other, number in self._left.items() if other != REFERENCE)
        if self._first and self._stage == "generate" and left:
            seconds = (time.monotonic() - self._since) * left / count
            self.say(f"{self._stage}: about {duration(seconds)} for the other {left:,}, as the first {count} went")
        self._first = False

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}
