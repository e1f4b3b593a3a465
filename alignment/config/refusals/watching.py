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
    fewest = min(run.evaluation.images_per_prompt, run.evaluation.curve_images_per_prompt)
    if {"diversity", "drift"} & {*watch.also} and fewest < 2:
        yield (
            "watch.also",
            f"diversity and drift compare two pictures of a prompt, got {fewest}; set evaluation.images_per_prompt and "
            "evaluation.curve_images_per_prompt to 2 or more",
        )
    if not watch.room > 0:
        yield "watch.room", f"got {watch.room}, expected more than 0"
    if not 0 < watch.false_alarms < 0.5:
        yield "watch.false_alarms", f"got {watch.false_alarms}, expected more than 0 and less than 0.5"
    if not 0 < watch.slower <= 1:
        yield "watch.slower", f"got {watch.slower}, expected more than 0 and at most 1"
