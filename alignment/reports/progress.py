"""How far a run is: a live bar on a terminal, one plain line per step in a log file."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from alignment.reports.console import Console
from alignment.reports.pictures import printable

REWARD, SECONDS = "reward/mean", "seconds/total"


class ProgressLine:
    """Shows the step, its reward, its time and the time left.

    Attributes:
        console: Where it is shown; a terminal gets a bar, anything else lines.
    """

    def __init__(
        self, total_steps: int, *, quiet: bool = False, console: Console | None = None, headline: str = REWARD
    ) -> None:
        """Begin at step 0 of `total_steps`; `quiet` shows nothing, `headline` is a metric shown beside the reward."""
        self._shown = {REWARD: "reward", **({} if headline == REWARD else {headline: headline.rpartition("/")[2]})}
        self.console = console or Console(quiet=quiet, highlight=False)
        self._total = total_steps
        self._first: tuple[int, float] | None = None
        self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self.console.is_terminal and not quiet:
            step, rest = TextColumn("[bold]step"), TextColumn("{task.description}", markup=False)
            bar = Progress(step, MofNCompleteColumn(), BarColumn(bar_width=None), rest, console=self.console)
            self._task = bar.add_task("", total=total_steps)
            bar.start()
            self._bar = bar

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        """Show that `done` steps are behind us; `metrics` are those of the last."""
        now = time.monotonic()
        seconds = metrics.get(SECONDS, now - self._last)
        self._last = now
        # The time left counts evaluations and checkpoints too, so it goes by the clock and not by the step's seconds.
        if self._first is None:
            self._first = (done - 1, now - seconds)
        before, since = self._first
        left = duration((self._total - done) * (now - since) / max(1, done - before))
        shown = "".join(f"{word} {metrics[name]:.4g} · " for name, word in self._shown.items() if name in metrics)
        text = f"{shown}{seconds:.2f} s/step · {left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=text)
        else:
            self.console.print(f"step {done}/{self._total} · {text}", markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(escape(printable(text)), soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Return a time span in its two largest units, such as `3 min 20 s`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
