"""What makes steps cheaper, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from alignment.config.parallel import Problem
from alignment.config.run import Run
from alignment.data.batches import Starts, Transitions
from alignment.sources.base import Source
from alignment.sources.overlap import beside


def problems(run: Run) -> Iterator[Problem]:
    """Yield what is wrong with how a run saves time."""
    yield from _scouts(run)
    yield from _stale(run)
    yield from _caches(run)
    yield from _compiled(run)


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


def _stale(run: Run) -> Iterator[Problem]:
    """Look at whether what is learned may come from an earlier policy, and whether scores are waited for at all."""
    reward = run.source.reward
    if not run.source.stale:
        return
    if not run.objective.takes_ratios:
        yield (
            "source.stale",
            f"{type(run.objective).__name__} takes samples for those of the policy that learns, and weighs none by a "
            "ratio to the one that sampled; use 0, or an objective that does (clipped_surrogate, guarded_surrogate, "
            "spo); one of your own says so with takes_ratios",
        )
    if not _in_halves(type(run.source)):
        yield (
            "source.stale",
            f"{type(run.source).__name__} samples and scores in __call__, and only what samples in `halves` can go on "
            "before scores are there; write halves in place of it, or use 0",
        )
    if run.source.weights != "live":
        yield "source.stale", f"samples come from the copy {run.source.weights}, which is behind by itself; use 0"
    if reward is not None and not beside(reward, torch.device(_device(run)), run.source.overlap):
        yield (
            "source.stale",
            f"{reward} computes on the cores that sample, so that there is nothing to wait for; use 0, or, for a "
            "function that waits for something else, source.overlap: always",
        )


def _in_halves(source: type[Source]) -> bool:
    """Return whether what a source does stands in `halves`, and not in a `__call__` that came later."""
    call, halves = (next(k for k in source.__mro__ if name in vars(k)) for name in ("__call__", "halves"))
    return halves is not Source and issubclass(halves, call)


def _caches(run: Run) -> Iterator[Problem]:
    """Look at whether what is learned may come from a network that leaves parts of itself out."""
    scout, produces, objective = run.source.scout, run.source.produces, type(run.objective).__name__
    if run.policy.cache is not None:
        if produces is Transitions:
            yield (
                "policy.cache",
                f"{objective} needs the density of each sampled step, and what a network with a cache answers is not "
                "what it answers in the update, so that the first ratio would not be 1; choose an objective of clean "
                "samples (nft, weighted_matching, ...), or leave it out. Scouts may have one: source.scout.how.cache",
            )
        elif produces is Starts:
            yield "policy.cache", f"{objective} samples with gradient, which has to pass all layers; leave it out"
        elif run.source.shape(None).calls == 0:
            yield "policy.cache", f"{type(run.source).__name__} samples nothing; leave it out"
    asked = {"policy.cache": run.policy.cache, "source.scout.how.cache": None if scout is None else scout.how.cache}
    for key in (key for key, cache in asked.items() if cache is not None):
        if run.policy.compile:
            yield (
                key,
                "a compiled network would be compiled anew whenever the cache comes and goes; drop one of the two",
            )


def _compiled(run: Run) -> Iterator[Problem]:
    if run.policy.compile:
        from alignment.policy.networks.compiling.compiler import lacking_compiler

        if (lacking := lacking_compiler(_device(run))) is not None:
            yield "policy.compile", f"{lacking}; or set it to false"


def _device(run: Run) -> str:
    return "cuda" if run.device == "cuda" or (run.device == "auto" and torch.cuda.is_available()) else "cpu"
