"""What a builder of the zoo returns: a pipeline with random weights and the arguments that suit its size."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler


@dataclass(frozen=True)
class Member:
    """A pipeline of the zoo.

    Attributes:
        pipe: The pipeline, components built in code.
        call: Arguments of its `__call__`.
        cannot: Checks that it cannot pass, by name, and words of the message a user then gets.
        name: Name of the function that built it.
    """

    pipe: DiffusionPipeline
    call: Mapping[str, object]
    cannot: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


def builders(*modules: ModuleType) -> dict[str, Callable[[], Member]]:
    """Return the functions of `modules` that build a member, by name, in the order of the files."""
    found: dict[str, Callable[[], Member]] = {}
    for module in modules:
        mine = [function for _, function in inspect.getmembers(module, inspect.isfunction)]
        mine = [f for f in mine if f.__module__ == module.__name__ and f.__annotations__.get("return") == "Member"]
        found |= {f.__name__: _finished(f) for f in sorted(mine, key=lambda f: f.__code__.co_firstlineno)}
    return found


def _finished(build: Callable[[], Member]) -> Callable[[], Member]:
    """Return a builder that starts from one seed and gives a named pipeline, frozen and in eval mode."""

    @functools.wraps(build)
    def finish() -> Member:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            member = replace(build(), name=build.__name__)
        for component in member.pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval().requires_grad_(False)
        member.pipe.set_progress_bar_config(disable=True)
        return member

    return finish


def pad_to(kind: type[DiffusionPipeline], tokens: int, letters: int) -> None:
    """Let pipelines of a class pad texts to `tokens`, and what is to be written in the picture to `letters`.

    How many is a number in their `__init__`: a thousand, and 256, each of which a layer of 2,048 widths reads.
    """
    kind.tokenizer_max_length = property(lambda self: tokens, lambda self, value: None)
    kind.tokenizer_2_max_length = property(lambda self: letters, lambda self, value: None)


def flow(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Return the usual scheduler of flow models, with a fixed shift."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)
