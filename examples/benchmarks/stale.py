"""What `source.stale: 1` saves where a judge is slow: steps of one recipe with it and without, in turn.

    python -m examples.benchmarks.stale [--seconds 2] [--steps 4] [--repeats 2] [key=value ...]

The judge sleeps, as one on a server lets this machine do, `--seconds` a step whatever the number of samples. Times are
of wall clock and of whole steps, the first of each run left out: with `stale: 1` it samples two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from alignment.config.load import load as load_run
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from examples.benchmarks.conditions import conditions, load_average, said

RECIPE = "quickstart_dancegrpo"
COMMON = ("evaluation.prompts=null", "source.overlap=always", "source.prompts_per_call=null")
seconds = 2.0


def slow(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return how red each sample is, after a while."""
    time.sleep(seconds)
    return pixels[:, :, 0].mean((1, 2, 3))


def steps(recipe: str, overrides: Sequence[str], count: int, stale: int) -> list[dict[str, float]]:
    """Return the metrics of the steps of a new run, without its first."""
    reward = f"source.reward={{type: function, call: '{__name__}:slow'}}"
    run = load_run(recipe, [*COMMON, reward, f"steps={count + 1}", f"source.stale={stale}", *overrides])
    runtime = Runtime(run)
    lines: list[dict[str, float]] = []
    try:
        load(run, runtime).fit(0, lambda step, experience, metrics: lines.append(metrics))
    finally:
        runtime.close()
    return lines[1:]


def main() -> None:
    """Measure and print."""
    global seconds
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    given = parser.parse_args()
    seconds = given.seconds
    under, loads = conditions(), []
    taken: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    for _ in range(given.repeats):
        for stale, lines in taken.items():
            loads.append(load_average())
            lines += steps(given.recipe, given.overrides, given.steps, stale)
    print(f"{said(under)}; load {min(loads):.1f} to {max(loads):.1f} meanwhile; a judge of {seconds:g} s")
    names = ("seconds/total", "seconds/rollout", "seconds/reward", "seconds/update", "ratio/first_error_mean")
    told = {
        stale: {name: statistics.median(line[name] for line in lines) for name in names}
        for stale, lines in taken.items()
    }
    for name in names:
        print(f"{name:24}" + "".join(f"{f'stale {stale}':>10} {found[name]:8.3g}" for stale, found in told.items()))
    print(f"a step is {told[0]['seconds/total'] / told[1]['seconds/total']:.2f} times faster")
    if given.output is not None:
        given.output.write_text(
            json.dumps({"conditions": under, "loads": loads, **{str(k): v for k, v in told.items()}}, indent=2)
        )


if __name__ == "__main__":
    main()
