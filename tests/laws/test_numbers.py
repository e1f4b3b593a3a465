"""What every number of a config keeps: one that float32 cannot hold is refused where it is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest

from alignment.config import registry
from alignment.config.build import build, fields_of
from alignment.config.listing import kinds
from alignment.config.run import Run
from alignment.config.yaml_nodes import Node
from alignment.errors import ConfigError

BEYOND = (math.inf, -math.inf, math.nan, 1e39, -1e39)


def classes() -> Iterator[type]:
    """Yield every dataclass that a config can construct."""
    pending: list[Any] = [Run]
    for kind in kinds(Run).values():
        pending += [registry.find(kind, name) for name in registry.known(kind)]
    seen: set[type] = set()
    while pending:
        cls = pending.pop()
        pending += get_args(cls)
        if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls not in seen:
            seen.add(cls)
            pending += [hint for hint, _ in fields_of(cls).values()]
            yield cls


def written(hint: Any, number: object) -> tuple[str, Node] | None:
    """Return a field of this type that holds the number, and the key of the number in it."""
    if hint is float:
        return "", Node(number, "here")
    for part in get_args(hint):
        if inner := written(part, number):
            key, node = inner
            if get_origin(hint) is tuple:
                others = () if get_args(hint)[-1] is Ellipsis else get_args(hint)[1:]
                return f".0{key}", Node([node, *(Node(0.5, "here") for _ in others)], "here")
            return (f".a{key}", Node({"a": node}, "here")) if get_origin(hint) is not None and _maps(hint) else inner
    return None


def _maps(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and hasattr(origin, "keys")


FIELDS = [
    pytest.param(cls, name, hint, id=f"{cls.__module__}.{cls.__name__}.{name}")
    for cls in classes()
    for name, (hint, _) in fields_of(cls).items()
    if written(hint, 0.0)
]


@pytest.mark.parametrize(("cls", "name", "hint"), FIELDS)
def test_a_number_beyond_all_bounds_is_refused(cls: type, name: str, hint: Any) -> None:
    for number in BEYOND:
        found = written(hint, number)
        assert found is not None
        with pytest.raises(ConfigError, match=f"{name}{found[0]}: got ") as refused:
            build(cls, Node({name: found[1]}, "here"))
        assert "expected a finite number" in str(refused.value)


def test_there_are_such_fields() -> None:
    assert len(FIELDS) > 60
    assert {"clip", "kl", "learning_rate", "betas", "above", "weights"} <= {param.values[1] for param in FIELDS}
