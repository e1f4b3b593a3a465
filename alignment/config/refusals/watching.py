"""What a watch needs."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.config.parallel import Problem
from alignment.config.run import Run


def problems(run: Run) -> Iterator[Problem]:
    """Yield what keeps a watch from seeing anything, or from meaning anything."""
    watch = run.watch
    if watch is None:
        return
    if not watch.gold:
        yield "watch.gold", "it names no metric; name what must not fall, such as [shapes/strict]"
    if run.evaluation.prompts is None or run.evaluation.every < 1:
        yield (
            "watch",
            "it looks at evaluations, and there are none on the way; set evaluation.prompts and evaluation.every, or "
            "leave the watch out",
        )
    if not 0 < watch.false_alarms < 0.5:
        yield "watch.false_alarms", f"got {watch.false_alarms}, expected more than 0 and less than 0.5"
    if not 0 < watch.slower <= 1:
        yield "watch.slower", f"got {watch.slower}, expected more than 0 and at most 1"
