"""What makes rollouts cheaper, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.config.parallel import Problem
from alignment.config.run import Run


def problems(run: Run) -> Iterator[Problem]:
    """Yield what is wrong with how a run saves time in its rollouts."""
    yield from _scouts(run)


def _scouts(run: Run) -> Iterator[Problem]:
    """Look at whether what is learned may be learned from chosen samples, and whether scouts are cheap."""
    scout, reward = run.source.scout, run.source.reward
    if scout is None:
        return
    if run.objective.whole_groups:
        yield (
            "source.scout",
            f"{type(run.objective).__name__} takes the samples of a group for all that the policy makes of a prompt, "
            "and scouts leave the middle out; choose an objective that takes each row by itself, or leave scout out",
        )
    if reward is not None and reward.scope == "group":
        yield (
            "source.scout",
            f"{reward} scores a sample against its group, which is another one for scouts; give a reward that scores a "
            "sample by itself, or leave scout out",
        )
    if scout.how.tail is not None and run.source.dynamics is None:
        yield (
            "source.scout.how.tail",
            f"samples of source {type(run.source).__name__} have no window that a tail could follow; use call, as in "
            "call: {num_inference_steps: 4}",
        )
    steps, asked = (call.get("num_inference_steps") for call in (run.policy.call, scout.how.call))
    if isinstance(steps, int) and isinstance(asked, int) and not 1 <= asked <= steps:
        yield (
            "source.scout.how.call.num_inference_steps",
            f"got {asked}, expected a number from 1 to the {steps} of policy.call",
        )
