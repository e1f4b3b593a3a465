"""What reward models and benchmarks there are, read from their folders."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

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
        own = {key: _said(inspect.getattr_static(cls, key)) for key in ("differentiable", "scope")}
        found.append(Listed(name, _summary(cls), **own))
    return found


def benchmarks() -> list[Listed]:
    """Return the benchmarks."""
    return [Listed(name, _summary(registry.find(Benchmark, name))) for name in registry.known(Benchmark)]


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else "by its parts"
