"""What the machinery costs: `make bench`. Every ratio compares two things measured in turn in this one run.

    overhead   a GRPO step against the bare denoiser, VAE and reward calls it is made of, at the same batch sizes
    prefix     a windowed step with shared prefix and short tail against the same step without them
    collapse   the update of a branched group as one row against one row a sample, and how far their gradients differ
    memory     bytes held for the backward pass when one step is trained and when five are

Prints a table and writes JSON (`--output`). Times are medians of interleaved repetitions, in seconds of wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from alignment.config.load import load as load_run
from alignment.data.batches import Transitions
from alignment.policy.networks.tuning import adapter_layers, merged
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from examples.benchmarks.conditions import conditions, load_average, said
from reward_models.base import Media

RECIPE = "quickstart_dancegrpo"
QUICKSTART = "quickstart"


def medians(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each job; the jobs take turns, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def trainer(*overrides: str, recipe: str = RECIPE) -> Trainer:
    """Return a loaded run of the benchmark's recipe."""
    run = load_run(recipe, overrides)
    return load(run, Runtime(run))


def step(made: Trainer) -> None:
    """Take one whole training step, always the same one."""
    ctx = made.context(0)
    made.learn(ctx, made.experience(ctx).batch)
    made.runtime.metrics()


@dataclass(frozen=True)
class BareCall:
    """One call of a network during a step, with what it was given."""

    network: torch.nn.Module
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    grad: bool


@contextmanager
def recorded(networks: dict[str, Any]) -> Iterator[list[BareCall]]:
    """Record every call of `networks` while the context is open."""
    calls: list[BareCall] = []

    def hook(network: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(BareCall(network, arguments, named, torch.is_grad_enabled()))

    handles = [network.register_forward_pre_hook(hook, with_kwargs=True) for network in networks.values()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def bare(made: Trainer, calls: list[BareCall], latents: list[Tensor], media: Media, texts: tuple[str, ...]) -> None:
    """Make the calls of a step with nothing around them: forward, backward where there was one, decode, score."""
    policy = made.policy
    spec = policy.spec
    half = torch.autocast(policy.device.type, torch.bfloat16) if spec.autocast else nullcontext()
    folded = merged(adapter_layers(policy.denoiser)) if spec.lora is not None and spec.lora.merge else nullcontext()
    with torch.no_grad(), folded:
        for call in (call for call in calls if not call.grad):
            with half:
                call.network(*call.arguments, **call.named)
        for z in latents:
            with half:
                policy.pipe.vae.decode(z)
    made.runtime.world.scorer(made.run.source.reward)(media=media, prompts=texts)
    for call in (call for call in calls if call.grad):
        with half:
            out = call.network(*call.arguments, **call.named)
        out[0].float().sum().backward()
    made.runtime.optimizer.zero_grad(set_to_none=True)


def overhead(repeats: int, recipe: str) -> dict[str, float]:
    """Return seconds of a step and of its bare calls, and their ratio."""
    made = trainer(recipe=recipe)
    latents: list[Tensor] = []
    decode = made.policy.pipe.vae.decode

    def listening(z: Tensor, return_dict: bool = True) -> object:
        latents.append(z)
        return decode(z, return_dict=return_dict)

    made.policy.pipe.vae.decode = listening
    ctx = made.context(0)
    with recorded({"denoiser": made.policy.denoiser}) as calls:
        experience = made.experience(ctx)
        made.learn(ctx, experience.batch)
    made.policy.pipe.vae.decode = decode
    made.runtime.metrics()
    found = medians(
        {
            "step": lambda: step(made),
            "bare": lambda: bare(made, calls, latents, experience.media, experience.prompts),
        },
        repeats,
    )
    return {**found, "ratio": found["step"] / found["bare"]}


def prefix(repeats: int) -> dict[str, float]:
    """Return seconds of a step at G = 16, N = 10, window 2, with and without what a group shares."""
    common = (
        "policy.call.num_inference_steps=10",
        "source.prompts=4",
        "source.prompts_per_call=null",
        "source.group_size=16",
        "source.window={type: random, size: 2, among: [4, 5], contiguous: true}",
        "batch={updates: 1, microbatch: 64}",
    )
    shared = trainer(*common, "source.tail=2")
    apart = trainer(*common, "source.share_prefix=false")
    apart.policy.share_states = False
    found = medians({"shared": lambda: step(shared), "apart": lambda: step(apart)}, repeats)
    return {**found, "ratio": found["shared"] / found["apart"]}


def per_sample(batch: Transitions) -> Transitions:
    """Return a branched batch with one row a sample: the same states, once for each action."""
    actions = batch.actions
    each = torch.arange(len(batch)).repeat_interleave(actions)
    rows = batch[each]
    chosen = torch.arange(actions).repeat(len(batch))
    return replace(
        rows,
        x_next=rows.x_next[torch.arange(len(each)), :, chosen][:, :, None],
        advantage=rows.advantage[torch.arange(len(each)), chosen][:, None],
    )


def collapse(repeats: int) -> dict[str, float]:
    """Return seconds of the two updates at G = 24, their ratio, and the relative difference of their gradients."""
    made = trainer(
        "source.group_size=24",
        "source.prompts=8",
        "source.window={type: branch, steps: [1]}",
        "source.prompts_per_call=null",
        "policy.autocast=null",
        "policy.lora.merge=false",
        "batch={updates: 1, microbatch: 192}",
    )
    ctx = made.context(0)
    one = made.experience(ctx).batch
    assert isinstance(one, Transitions)
    many = per_sample(one)

    def gradient(batch: Transitions) -> Tensor:
        made.runtime.optimizer.zero_grad(set_to_none=True)
        made.run.objective(ctx, batch, lambda loss: made.runtime.learn(loss, len(batch)))
        grads = [p.grad.flatten() for p in made.policy.trainable.values() if p.grad is not None]
        return torch.cat(grads).clone()

    made.policy.share_states = False  # or the policy would find that the samples of a group share their state
    found = medians({"collapsed": lambda: gradient(one), "per_sample": lambda: gradient(many)}, repeats)
    difference = (gradient(one) - gradient(many)).norm() / gradient(many).norm()
    return {**found, "ratio": found["collapsed"] / found["per_sample"], "gradient_difference": difference.item()}


def memory() -> dict[str, float]:
    """Return the most bytes that autograd held at once, when one step is trained and when five are."""
    found = {}
    for trained in (1, 5):
        made = trainer(
            "policy.call.num_inference_steps=6",
            "batch={updates: 1, microbatch: 48}",
            f"source.window={{type: random, size: {trained}, drop_last: true}}",
        )
        made.policy.share_states = False  # or one step alone would hold a row a group
        ctx = made.context(0)
        batch = made.experience(ctx).batch
        found[f"{trained} trained"] = float(_held(lambda made=made, ctx=ctx, batch=batch: made.learn(ctx, batch)))
        made.runtime.metrics()
    return {**found, "ratio": found["5 trained"] / found["1 trained"]}


class _Saved:
    """A tensor that autograd keeps, counted while it lives."""

    held = 0
    most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.size = tensor.numel() * tensor.element_size()
        _Saved.held += self.size
        _Saved.most = max(_Saved.most, _Saved.held)

    def __del__(self) -> None:
        _Saved.held -= self.size


def _held(job: Callable[[], object]) -> int:
    _Saved.held = _Saved.most = 0
    with torch.autograd.graph.saved_tensors_hooks(_Saved, lambda saved: saved.tensor):
        job()
    return _Saved.most


def main() -> None:
    """Run all benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", default="runs/benchmark.json")
    given = parser.parse_args()
    jobs: dict[str, Callable[[], dict[str, float]]] = {
        "overhead, quickstart": lambda: overhead(given.repeats, QUICKSTART),
        "overhead, DanceGRPO": lambda: overhead(given.repeats, RECIPE),
        "prefix": lambda: prefix(given.repeats),
        "collapse": lambda: collapse(given.repeats),
        "memory": memory,
    }
    under = conditions()
    table = Table(title=f"medians of {given.repeats}; {said(under)}")
    for heading in ("benchmark", "measured", "ratio", "threads", "load"):
        table.add_column(heading)
    results: dict[str, dict[str, float]] = {}
    for name, job in jobs.items():
        before = load_average()
        found = results[name] = {**job(), "load": before}
        rest = ", ".join(f"{key} {value:.4g}" for key, value in found.items() if key not in ("ratio", "load"))
        table.add_row(name, rest, f"{found['ratio']:.3f}", str(under["threads"]), f"{before:.1f}")
    Console().print(table)
    os.makedirs(os.path.dirname(given.output) or ".", exist_ok=True)
    with open(given.output, "w", encoding="utf-8") as file:
        json.dump({"conditions": {**under, "repeats": given.repeats}, **results}, file, indent=2)


if __name__ == "__main__":
    main()
