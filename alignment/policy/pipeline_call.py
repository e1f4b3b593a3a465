"""Calling any pipeline: which arguments it takes, what its errors mean to a user, what it returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from alignment.errors import ForwardProcessError, PipelineError, PipelineRefused
from alignment.policy.call_arguments import parameters
from reward_models.foreign import ForeignCode, first_line
from samplers import ReplayMismatch

_SEEDS_SHOWN = 4
"""Seeds that an error names: enough to call the pipeline with by hand."""

ROUNDING = 1e-2
"""What encoders that run twice may differ by in bfloat16; what is missing makes numbers of unit size another."""


def accepted_arguments(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `given` that the pipeline's `__call__` takes; some take no prompt, some no generator."""
    known = parameters(type(pipe))
    return {name: value for name, value in given.items() if name in known}


def calling_pipeline(pipe: Any) -> ForeignCode:
    """Return the context in which a pipeline, or a part of it, is called: its errors become `PipelineRefused`.

    Nothing beneath the conductor is the pipeline's: that is us, or the objective that learns from a round.
    """
    name = type(pipe).__name__
    return ForeignCode(lambda error: PipelineRefused(f"{name} raised {_said(error)}"), "samplers.stand_in.conductor")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error, 'no reason given')}"


def cause(error: PipelineRefused) -> str:
    """Return the pipeline's error in one line, with its class where the text alone says little."""
    said = error.__cause__
    assert said is not None
    kind = f"{type(said).__name__}: " if isinstance(said, LookupError | AttributeError) else ""
    return kind + first_line(said, "no reason given")


@contextlib.contextmanager
def naming_key(key: str, pipe: Any) -> Iterator[None]:
    """Name the key of the call arguments in the error of a pipeline's first call with them."""
    try:
        yield
    except PipelineRefused as error:
        name = type(pipe).__name__
        raise PipelineError(f"{key}: {name} cannot be called with these arguments: {cause(error)}") from error


@contextlib.contextmanager
def same_states(pipe: Any, seeds: Tensor, *, own: bool) -> Iterator[None]:
    """Explain the error of a pipeline that reached another state than the recorded one, or than one of `own` making."""
    try:
        yield
    except ReplayMismatch as error:
        name = type(pipe).__name__
        if own:
            raise ForwardProcessError(
                f"{name} changes the states it is handed, as inpainting does ({error})"
            ) from error
        raise PipelineError(
            f"{name} did not come by its recorded states again ({error}): a replay with the same seeds, here "
            f"{', '.join(map(str, seeds[:_SEEDS_SHOWN].tolist()))}{', ...' if len(seeds) > _SEEDS_SHOWN else ''}, has "
            "to meet them bit for bit"
        ) from error


@contextlib.contextmanager
def global_stream(seeds: Tensor, device: torch.device) -> Iterator[None]:
    """Fix the global random stream, from which some pipelines draw although they are given generators."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed = int(seeds[0]) if len(seeds) else 0
        # Not torch.manual_seed: it tells every kind of device, and those not in use each keep where they were told.
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield


def output(answer: Any) -> Any:
    """Return the result of a call with `return_dict=False`: the first of a tuple, or the value itself."""
    return answer[0] if isinstance(answer, tuple) else answer


def are_alike(found: Any, wanted: Any) -> bool:
    """Return whether two structures of arguments are equal, tensors up to rounding."""
    (ours, tree), (theirs, other) = tree_flatten(found), tree_flatten(wanted)
    return tree == other and all(_same(a, b) for a, b in zip(ours, theirs, strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=ROUNDING, atol=ROUNDING, equal_nan=True)
    return type(a) is type(b) and (not isinstance(a, str | int | float) or a == b)
