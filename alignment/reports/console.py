"""Tables, bars and notes on a terminal, by rich, with the care of `terminal`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from alignment.reports.terminal import visible


class Console(RichConsole):
    """A console that shows others' text as it is, and whose reader may leave early (`| head`)."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render; what rich itself sends to the terminal is in control segments and stays."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Fall silent, where rich would end the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
