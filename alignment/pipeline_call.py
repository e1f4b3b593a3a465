"""Calling a pipeline of any kind: which arguments it takes, what its errors mean to a user, what it hands back."""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from alignment.errors import ConfigError, ForwardProcessError, PipelineError, VisalignError
from samplers import ReplayMismatch

_SEEDS_SHOWN = 4
"""Seeds that an error names: enough to call the pipeline with by hand."""

_OURS = (
    "self", "prompt", "generator", "latents", "output_type", "return_dict",
    "num_images_per_prompt", "num_videos_per_prompt",
)  # fmt: skip
"""Arguments of a pipeline's `__call__` that the policy gives."""

_RAISED = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, NotImplementedError)
"""What pipelines raise for arguments they cannot work with; some of it was not meant for anybody's eyes."""


def checked_arguments(pipe: Any, arguments: dict[str, object], key: str) -> dict[str, object]:
    """Return `arguments` if the pipeline's `__call__` takes them all and the policy does not set them itself."""
    known = _parameters(pipe)
    for name in arguments:
        if name in _OURS:
            raise ConfigError(f"{key}.{name} cannot be set: every row is one prompt, with its own random stream")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"{key}.{name}: {type(pipe).__name__} takes no such argument.{hint}")
    return dict(arguments)


def taken(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `given` that the pipeline's `__call__` takes: some know no prompt, some no generator."""
    known = _parameters(pipe)
    return {name: value for name, value in given.items() if name in known}


def _parameters(pipe: Any) -> list[str]:
    return list(inspect.signature(type(pipe).__call__).parameters)


@contextlib.contextmanager
def blaming(key: str, pipe: Any) -> Iterator[None]:
    """Name the call arguments in what a pipeline raises on its first call with them; memory is not their fault."""
    try:
        yield
    except (VisalignError, torch.OutOfMemoryError):
        raise
    except _RAISED as error:
        cause = (str(error).strip() or "no reason given").splitlines()[0]
        if isinstance(error, LookupError | AttributeError):  # their words say little without their kind
            cause = f"{type(error).__name__}: {cause}"
        raise PipelineError(f"{key}: {type(pipe).__name__} cannot be called with these arguments: {cause}") from error


@contextlib.contextmanager
def same_states(pipe: Any, seeds: Tensor, *, own: bool) -> Iterator[None]:
    """Say what it means that a pipeline met another state than the one that was recorded, or `own`: made elsewhere."""
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
    """Fix the global random stream, from which some pipelines draw in spite of the generators they were handed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed = int(seeds[0]) if len(seeds) else 0
        # Not torch.manual_seed: it tells every kind of device, and those not in use each keep where they were told.
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)
        yield


def output(answer: Any) -> Any:
    """Return what a call with `return_dict=False` made: the first of a tuple, or what comes without one."""
    return answer[0] if isinstance(answer, tuple) else answer
