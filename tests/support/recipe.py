"""Dataclasses with one field of every sort that a config can hold, and real kinds of the project among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from alignment.config import overlay
from alignment.config.build import build
from alignment.errors import ConfigError
from reward_models.base import RewardModel
from samplers.dynamics.base import Dynamics
from samplers.dynamics.dance_sde import DanceSDE
from samplers.windows.all import All
from samplers.windows.base import Window

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    weight: float = 1.0
    window: Window = All()


@dataclass(frozen=True)
class Limits:
    low: int
    high: int = 10

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"low {self.low} is above high {self.high}")


@dataclass(frozen=True)
class Recipe:
    name: str
    dynamics: Dynamics = DanceSDE()
    reward: RewardModel | None = None
    limits: Limits = Limits(0)
    maybe: Limits | None = None
    rate: float = 1e-4
    count: int = 1
    switch: bool = False
    mode: Literal["error", "drop", "keep"] = "error"
    weight: Literal["true", "equal"] = "true"
    betas: tuple[float, float] = (0.9, 0.999)
    targets: tuple[str, ...] | None = None
    modes: tuple[Literal["a", "b"], ...] = ()
    many: tuple[Part, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)
    call: dict[str, object] = field(default_factory=dict)
    either: int | str | None = None


@dataclass(frozen=True)
class Constant:
    """A step rule of a user's own, which is no subclass of anything."""

    level: float = 0.5
    marginal = False
    needs_flow = False
    noise = ("level",)
    stochastic = True

    def step(self, grid: object, i: int, j: int) -> None:
        """Take no step."""


@dataclass(frozen=True)
class Unfit:
    """Not a step rule."""


class Undressed:
    """Not a dataclass."""


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path, *overrides: str, cls: type[T] = Recipe) -> T:
    return build(cls, overlay.override(overlay.read(path), overrides))
