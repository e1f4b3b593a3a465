"""What reward models and benchmarks there are, read from their folders."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, fields

from alignment.config import registry
from evals.benchmarks.base import Benchmark
from reward_models.base import RewardModel


@dataclass(frozen=True)
class Listed:
    """One of them.

    Attributes:
        name: What the command line calls it.
        says: What it is, in a line.
        differentiable: "yes", "no" or "by its parts"; empty for benchmarks.
        scope: "sample" or "group"; empty for benchmarks.
    """

    name: str
    says: str
    differentiable: str = ""
    scope: str = ""


def rewards() -> list[Listed]:
    """Return the reward models."""
    found = []
    for name in registry.known(RewardModel):
        cls = registry.find(RewardModel, name)
        found.append(Listed(name, _summary(cls), *(_fact(cls, key) for key in ("differentiable", "scope"))))
    return found


def benchmarks() -> list[Listed]:
    """Return the benchmarks."""
    return [Listed(name, _summary(registry.find(Benchmark, name))) for name in registry.known(Benchmark)]


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _fact(cls: type, name: str) -> str:
    """Return what a class says of itself, or by default; "by its parts" where that hangs on what it is made of."""
    value: object = inspect.getattr_static(cls, name)
    made_of_nothing = all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls))
    if isinstance(value, property) and made_of_nothing:
        value = value.__get__(cls())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else "by its parts"
