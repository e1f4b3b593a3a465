"""The arguments of a pipeline's `__call__`: which there are, and which numbers they can be."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any, Union, get_args, get_origin

from alignment.errors import ConfigError

_OURS = (
    "self", "prompt", "generator", "latents", "output_type", "return_dict",
    "num_images_per_prompt", "num_videos_per_prompt",
)  # fmt: skip
"""Arguments that the policy gives."""

COUNTED_AT_MOST = 10**6
"""Of any whole number that a pipeline counts to, such as the tokens of a prompt: it takes memory for each."""


def checked_arguments(kind: Any, arguments: Mapping[str, object], key: str) -> dict[str, object]:
    """Return the arguments if a pipeline's `__call__` takes them all and the policy does not set them itself.

    Args:
        kind: The pipeline's class.
        arguments: By name.
        key: Where a config says them.

    Raises:
        ConfigError: Naming the first that it does not take, or that cannot be such a number.
    """
    known = parameters(kind)
    for name, value in arguments.items():
        if name in _OURS:
            raise ConfigError(f"{key}.{name} cannot be set: every row is one prompt, with its own random stream")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"{key}.{name}: {kind.__name__} takes no such argument.{hint}")
        if problem := _no_number(known[name].annotation, name, value):
            raise ConfigError(f"{key}.{name}: got {value!r:.80}, but {kind.__name__} takes {problem}")
    return dict(arguments)


def parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's `__call__`."""
    return inspect.signature(kind.__call__).parameters


def _no_number(annotation: object, name: str, value: object) -> str | None:
    """Return what an argument is that is declared as a number, where `value` is none; None where it may be."""
    parts = set(_alternatives(annotation))
    if value is None or not parts or not parts <= {int, float, types.NoneType}:
        return None  # null is the pipeline's own; what is not a plain number, the pipeline itself looks at
    whole = float not in parts
    if not isinstance(value, int if whole else int | float) or isinstance(value, bool):
        return "a whole number there" if whole else "a number there"
    if whole and "seed" not in name and not 0 <= value <= COUNTED_AT_MOST:
        return f"a whole number from 0 to {COUNTED_AT_MOST} there"
    return None


def _alternatives(annotation: object) -> Iterable[object]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
