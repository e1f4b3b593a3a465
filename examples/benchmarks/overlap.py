"""What scoring while sampling saves: one training step of the quickstart with a slow scorer, overlapped and in turn.

The scorer sleeps, as one on a server or another device lets the CPU do: for `--seconds` a pipeline call, or for as long
as sampling takes, which is measured first. Prints a table and writes JSON (`--output`). Times are medians of steps that
take turns, in seconds of wall clock; both ways have to give the same scores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignment.config.load import load as load_run
from alignment.sources.overlap import Overlap
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from examples.benchmarks.conditions import conditions

RECIPE = "quickstart"
seconds = 0.0


def slow(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return how red each sample is, after a while."""
    time.sleep(seconds)
    return pixels[:, :, 0].mean((1, 2, 3))


def trainer(calls: int, prompts_per_call: int) -> Trainer:
    """Return the quickstart, loaded, with the slow scorer and so many pipeline calls a step."""
    source = f"{{type: function, call: '{__name__}:slow'}}"
    words = [f"source.prompts={calls * prompts_per_call}", f"source.prompts_per_call={prompts_per_call}"]
    run = load_run(RECIPE, [f"source.reward={source}", "evaluation.prompts=null", *words])
    return load(run, Runtime(run))


def rollout_seconds(prompts_per_call: int, repeats: int = 5) -> float:
    """Return the median seconds of one pipeline call with so many prompts."""
    made = trainer(1, prompts_per_call)
    ctx = made.context(0)
    return statistics.median(made.experience(ctx).seconds["rollout"] for _ in range(repeats + 1))


def step(made: Trainer, overlap: Overlap) -> tuple[float, dict[str, float], Tensor]:
    """Take one whole step and return its seconds, where they went, and the scores."""
    run = replace(made.run, source=replace(made.run.source, overlap=overlap))
    made = replace(made, run=run)
    start, ctx = time.perf_counter(), made.context(0)
    experience = made.experience(ctx)
    sampled = time.perf_counter()
    made.learn(ctx, experience.batch)
    end = time.perf_counter()
    made.runtime.metrics()
    return end - start, {**experience.seconds, "update": end - sampled}, experience.rewards.value


def measure(calls: int, prompts_per_call: int, repeats: int) -> dict[str, object]:
    """Return medians of both ways, taking turns, after one round that is not counted."""
    made = trainer(calls, prompts_per_call)
    taken: dict[Overlap, list[tuple[float, dict[str, float], Tensor]]] = {"always": [], False: []}
    for repeat in range(repeats + 1):
        for overlap in taken:
            # The policy learns from step to step, so the scores of a turn are compared where they start alike.
            weights = {name: p.detach().clone() for name, p in made.policy.trainable.items()}
            found = step(made, overlap)
            with torch.no_grad():
                for name, p in made.policy.trainable.items():
                    p.copy_(weights[name])
            if repeat:
                taken[overlap].append(found)
    same = all(torch.equal(a[2], b[2]) for a, b in zip(taken["always"], taken[False], strict=True))
    total = {overlap: statistics.median(found[0] for found in taken[overlap]) for overlap in taken}
    return {
        "calls": calls,
        "seconds_of_scoring_a_call": seconds,
        "prompts_per_call": prompts_per_call,
        "seconds_in_turn": total[False],
        "seconds_overlapped": total["always"],
        "ratio": total[False] / total["always"],
        "same_scores": same,
        **{
            f"{name}_{'overlapped' if overlap else 'in_turn'}": statistics.median(f[1][name] for f in taken[overlap])
            for overlap in taken
            for name in ("rollout", "scoring", "reward", "update")
        },
    }


def main() -> None:
    """Measure and print."""
    global seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=24, help="pipeline calls a step")
    parser.add_argument("--prompts-per-call", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="how long scoring a call takes; as long as sampling if not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", help="a JSON file to write")
    args = parser.parse_args()
    seconds = args.seconds or rollout_seconds(args.prompts_per_call)
    found = {
        **measure(args.calls, args.prompts_per_call, args.repeats),
        **conditions(),
    }
    for name, value in found.items():
        print(f"{name:27}{value:.3f}" if isinstance(value, float) else f"{name:27}{value}")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
