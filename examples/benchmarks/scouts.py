"""What scouts are worth: CPU seconds to the reward that a recipe reaches without them, seed by seed.

    python -m examples.benchmarks.scouts [--recipe quickstart_nft] [--steps 60] [--seeds 0 1 2] [key=value ...]

Each seed trains the recipe for `--steps` at a constant rate, then the same recipe with scouts until it is where the
first one was at its best, or has taken as long. Both are measured on the held-out prompts every `--every` steps, which
does not count as time. Time is that of the process's own core, so that a machine with other work may be used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alignment.config.load import load as load_run
from alignment.data.batches import Batch, Experience
from alignment.training.evaluation import Evaluator
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from examples.benchmarks.conditions import conditions

SCOUTS = (
    "source.group_size=4",
    "source.scout.candidates=24",
    "source.scout.how.call.num_inference_steps=2",
)


@dataclass(frozen=True)
class Point:
    """Where a training is: its held-out reward after so many steps and CPU seconds of training."""

    step: int
    seconds: float
    reward: float


class Reached(Exception):  # no error: the training is over
    """The training is where it should be, or has taken too long."""


def curve(trainer: Trainer, every: int, target: float, limit: float) -> Iterator[Point]:
    """Train, and yield where it is; ends at `target`, or after `limit` seconds.

    Args:
        trainer: The run.
        every: Steps from one measurement to the next.
        target: Held-out reward to stop at.
        limit: CPU seconds to stop at.
    """
    assert trainer.held_out is not None
    assert trainer.run.measure is not None
    settings = trainer.run.evaluation
    evaluator = Evaluator(settings, trainer.held_out, trainer.run.measure)
    weights = "ema" if "ema" in trainer.policy.snapshots else "live"
    points: list[Point] = []
    spent, begun = 0.0, time.process_time()

    def measure(step: int) -> None:
        found = evaluator(trainer.context(step), settings.curve_images_per_prompt, weights)
        points.append(Point(step, spent, found.scores["reward"].nanmean().item()))

    def after(step: int, experience: Experience[Batch], metrics: dict[str, float]) -> None:
        nonlocal spent, begun
        spent += time.process_time() - begun
        if (step + 1) % every == 0:
            measure(step + 1)
            if points[-1].reward >= target or spent >= limit:
                raise Reached
        begun = time.process_time()

    measure(0)
    begun = time.process_time()
    with contextlib.suppress(Reached):
        trainer.fit(0, after)
    yield from points


def trained(recipe: str, overrides: Sequence[str], every: int, target: float, limit: float) -> list[Point]:
    """Return the curve of a recipe."""
    run = load_run(recipe, overrides)
    runtime = Runtime(run)
    try:
        return list(curve(load(run, runtime), every, target, limit))
    finally:
        runtime.close()


def main() -> None:
    """Race and print a line per seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="scouts other than the usual")
    parser.add_argument("--recipe", default="quickstart_nft")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="a JSON file for the curves")
    given = parser.parse_args()
    torch.set_num_threads(1)
    told: dict[str, object] = {"conditions": conditions()}
    for seed in given.seeds:
        common = [f"seed={seed}", "optimizer.final=1"]
        plain = trained(given.recipe, [*common, f"steps={given.steps}"], given.every, float("inf"), float("inf"))
        best = max(plain, key=lambda point: point.reward)
        scouts = [*common, f"steps={10 * given.steps}", *(given.overrides or SCOUTS)]
        found = trained(given.recipe, scouts, given.every, best.reward, plain[-1].seconds)
        last = found[-1]
        how = f"reached {last.reward:.3f}" if last.reward >= best.reward else f"stood at {last.reward:.3f}"
        print(
            f"seed {seed}: {best.reward:.3f} after {best.seconds:.0f} CPU seconds; scouts {how} after "
            f"{last.seconds:.0f}"
        )
        told[f"seed {seed}"] = {"plain": [vars(p) for p in plain], "scouts": [vars(p) for p in found]}
    if given.output is not None:
        given.output.write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
