"""What feature caches are worth: CPU seconds of sampling, and what the pictures and their rewards become.

    python -m examples.benchmarks.caches [--recipe quickstart_nft] [--steps 28] [--rows 32] [--repeats 3]

Samples the recipe's prompts with `--steps` denoising steps, without a cache and with each, in turn. Times are medians
of the process's own core time, one thread. `moved` is the root mean square of the difference of pixels, in units of
their standard deviation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from alignment.config.load import load as load_run
from alignment.policy.networks.caches.base import FeatureCache
from alignment.policy.networks.caches.first_block import FirstBlock
from alignment.policy.networks.caches.pyramid_attention import PyramidAttention
from alignment.policy.networks.caches.taylor_seer import TaylorSeer
from alignment.sources.credited import repeat
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from examples.benchmarks.conditions import conditions, said
from samplers import Conductor

CACHES: Mapping[str, FeatureCache | None] = {
    "none": None,
    "first_block 0.05": FirstBlock(0.05),
    "first_block 0.1": FirstBlock(0.1),
    "taylor_seer": TaylorSeer(),
    "pyramid_attention": PyramidAttention(),
}


def sampled(trainer: Trainer, cache: FeatureCache | None, texts: tuple[str, ...]) -> tuple[Tensor, float]:
    """Return pixels and the seconds that they took."""
    policy, seeds = trainer.policy, torch.arange(len(texts))
    begun = time.process_time()
    with torch.no_grad(), policy.sampling(), policy.caching(cache):
        pixels = policy.call(Conductor(), texts, seeds, pixels=True)
    assert pixels is not None
    return pixels.float().cpu(), time.process_time() - begun


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="quickstart_nft")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = load_run(given.recipe, [f"policy.call.num_inference_steps={given.steps}"])
    runtime = Runtime(run)
    trainer = load(run, runtime)
    known = trainer.prompts.texts
    texts = repeat(known, -(-given.rows // len(known)))[: given.rows]
    seconds: dict[str, list[float]] = {name: [] for name in CACHES}
    pictures: dict[str, Tensor] = {}
    for again in range(given.repeats + 1):
        for name, cache in CACHES.items():
            pictures[name], spent = sampled(trainer, cache, texts)
            if again:
                seconds[name].append(spent)
    reward = run.source.reward
    assert reward is not None
    table = Table(title=f"{given.rows} samples of {given.steps} steps; {said(conditions())}")
    for heading in ("cache", "CPU s", "faster", "reward", "moved"):
        table.add_column(heading)
    whole, plain = statistics.median(seconds["none"]), pictures["none"]
    for name, made in pictures.items():
        took = statistics.median(seconds[name])
        score = trainer.runtime.world.score(reward, trainer.policy.media(texts, made), texts, None).value.nanmean()
        moved = (made - plain).square().mean().sqrt() / plain.std()
        table.add_row(name, f"{took:.2f}", f"{whole / took:.2f}", f"{score:.3f}", f"{moved:.2f}")
    Console(width=110).print(table)
    runtime.close()


if __name__ == "__main__":
    main()
