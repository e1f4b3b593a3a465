"""What diffusers asks of every module of a pipeline, many times in every call: the same, in a fraction of the time.

Networks of tests are so small that looking for hooks on their modules took a quarter of a call. tests/test_quick.py
compares the answers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import islice
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry, group_offloading
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

PLACES: dict[str, Any] = {
    "_get_top_level_group_offload_hook": group_offloading,
    "reset_stateful_hooks": HookRegistry,
    "_get_signature_keys": DiffusionPipeline,
}
THEIRS = {name: vars(place)[name] for name, place in PLACES.items() if name in vars(place)}
"""What they are in diffusers; none where another version calls them otherwise, whose tests then take longer."""


def modules(root: nn.Module) -> Iterator[nn.Module]:
    """Yield what `root.modules()` yields, in its order, without a generator per level of names."""
    seen: set[nn.Module] = set()
    left: list[nn.Module | None] = [root]
    while left:
        module = left.pop()
        if module is not None and module not in seen:
            seen.add(module)
            yield module
            left.extend(reversed(module._modules.values()))


def top_level_hook(module: nn.Module) -> Any:
    """Return the first hook of offloading by groups, or None."""
    registries = (vars(one).get("_diffusers_hook") for one in modules(module))
    hooks = (registry.get_hook("group_offloading") for registry in registries if registry is not None)
    return next((hook for hook in hooks if hook is not None), None)


def reset(registry: HookRegistry, recurse: bool = True) -> None:
    """Reset the hooks that have a state, of a module and of those in it."""
    THEIRS["reset_stateful_hooks"](registry, recurse=False)
    if recurse:
        for module in islice(modules(unwrap_module(registry._module_ref)), 1, None):
            inner = vars(module).get("_diffusers_hook")
            if inner is not None:
                inner.reset_stateful_hooks(recurse=False)


@functools.cache
def keys_of(pipeline: type[DiffusionPipeline], obj: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of components and of other arguments, once a class."""
    components, others = THEIRS["_get_signature_keys"].__func__(pipeline, obj)
    return tuple(components), tuple(others)


def keys(pipeline: type[DiffusionPipeline], obj: Any) -> tuple[list[str], list[str]]:
    """Return the same for a class or an instance of it."""
    components, others = keys_of(pipeline, obj if isinstance(obj, type) else type(obj))
    return list(components), list(others)


def install() -> None:
    """Let diffusers ask here."""
    ours = (top_level_hook, reset, classmethod(keys))
    for (name, place), function in zip(PLACES.items(), ours, strict=True):
        if name in THEIRS:
            setattr(place, name, function)
