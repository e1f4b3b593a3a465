"""What is said of keys that make a run faster: whether they do, here."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from alignment.policy.networks.compiling.compilations import COMPILATIONS
from alignment.policy.networks.compiling.compiler import running_eagerly
from alignment.preflight.doctor.laws_of_learning import first_ratio
from alignment.preflight.doctor.subject import Finding, NotApplicable, Subject
from samplers import Conductor

REPEATS = 3
"""Calls whose median counts."""
ROWS = 4
"""Of each call, where a step has as many prompts."""


def compilation_pays(subject: Subject) -> Finding:
    """Compiled networks answer as they are written, sooner, and soon enough to make up for compiling.

    Of sampling; the first two calls are not counted. What was compiled before this law, for the run's own calls, is a
    part of what has to be made up for.
    """
    if not subject.trainer.run.policy.compile:
        raise NotApplicable("nothing is compiled (policy.compile)")
    sampled(subject)
    compiled, warm = _timed(subject)
    with running_eagerly():
        written, eager = _timed(subject)
        ratio = f", first ratios as written off 1 by {_ratio(subject)}" if subject.trainer.run.source.dynamics else ""
    moved = ((compiled - written).square().mean().sqrt() / written.std()).item()
    gain, cold = eager - warm, COMPILATIONS.seconds
    even = f"made up for after {cold / gain:.0f} calls" if gain > 0 else "never made up for"
    says = (
        f"{moved:.1e} of a standard deviation between compiled and written{ratio}; {COMPILATIONS.graphs} graphs in "
        f"{cold:.0f} s; a call of {len(written)} rows {eager:.3g} s as written, {warm:.3g} s "
        f"compiled: {even}"
    )
    cause = "" if gain > 0 else "compiled calls are not faster here; set policy.compile to false"
    return Finding("pass" if gain > 0 else "warning", eager / warm, "> 1", says, cause)


def sampled(subject: Subject) -> Tensor:
    """Return the last states of a small call, `[n, *latent]` float32."""
    prompts, conductor = subject.trainer.prompts.texts[:ROWS], Conductor()
    subject.policy.call(conductor, tuple(prompts), torch.arange(len(prompts)), pixels=False)
    assert conductor.final is not None
    return conductor.final.float()


def _timed(subject: Subject) -> tuple[Tensor, float]:
    states, seconds = sampled(subject), []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        states = sampled(subject)
        seconds.append(time.perf_counter() - begun)
    return states, statistics.median(seconds)


def _ratio(subject: Subject) -> str:
    found = first_ratio(subject).value
    return "an unknown number" if found is None else f"{found:.1e}"
