"""What a builder of the zoo returns: a pipeline with random weights and the arguments that suit its size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image


@dataclass(frozen=True)
class Member:
    """A pipeline of the zoo.

    Attributes:
        pipe: The pipeline, components built in code.
        call: Arguments of its `__call__`.
        cannot: Checks that it cannot pass, by name, and words of the message a user then gets.
    """

    pipe: DiffusionPipeline
    call: Mapping[str, object]
    cannot: Mapping[str, str] = field(default_factory=dict)


def builders(*modules: ModuleType) -> dict[str, Callable[[], Member]]:
    """Return the functions of `modules` that build a member, by name, in the order of the files."""
    found = {}
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and function.__annotations__.get("return") == "Member":
                found[name] = function
    return dict(sorted(found.items(), key=lambda item: (item[1].__module__, item[1].__code__.co_firstlineno)))


def built(build: Callable[[], Member], seed: int = 0) -> Member:
    """Return what `build` makes from `seed`, frozen and in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        member = build()
    for component in member.pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    member.pipe.set_progress_bar_config(disable=True)
    return member


def flow(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Return the usual scheduler of flow models, with a fixed shift."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def picture(side: int = 32) -> Image.Image:
    """Return an input picture: a gradient, so that no two pixels of a row are alike."""
    rows = torch.linspace(0, 255, side).to(torch.uint8)
    pixels = torch.stack([rows.expand(side, side), rows[:, None].expand(side, side), rows.flip(0).expand(side, side)])
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
