"""Drawn scenes whose order of quality is known: the benchmark that ships."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage

from alignment.errors import ConfigError
from alignment.reports.pictures import encode
from evals.benchmarks.base import Benchmark, Comparison, Preference
from evals.drawing import draw, sample_scene
from evals.medium import Medium
from reward_models.verifiers.scenes import COLOURS, SHAPES, Scene

Rng = np.random.Generator


@dataclass(frozen=True)
class Shapes(Benchmark):
    """Pairs of drawn scenes for a caption, one of them with a known fault, made anew from the seed.

    Parts, in turn: the wrong colour, shape or count; blur and noise (the right scene, worse seen); and ties, two
    drawings of the caption of which neither is better.

    Attributes:
        pairs: How many.
        seed: Of the drawings.
    """

    pairs: int = 240
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ConfigError(f"shapes: pairs must be >= 1, got {self.pairs}")

    def read(self) -> list[Comparison]:
        """Draw the pairs."""
        return [self._pair(number) for number in range(self.pairs)]

    def _pair(self, number: int) -> Comparison:
        rng = np.random.default_rng([self.seed, number])
        part = list(_FAULTS)[number % len(_FAULTS)]
        scene = sample_scene(rng, kind="single")
        good, bad = draw(scene, rng), _FAULTS[part](scene, rng)
        turned = bool(rng.integers(2))
        one, other = (
            Medium(f"{number}-{part}-{side}.png", content=encode(Image.fromarray(picture)))
            for side, picture in zip("ab", (bad, good) if turned else (good, bad), strict=True)
        )
        human: Preference = 0 if part == "tie" else -1 if turned else 1
        return Comparison(scene.caption, one, other, human, unit=scene.caption, part=part)


def _other(words: tuple[str, ...], word: str, rng: Rng) -> str:
    left = [other for other in words if other != word]
    return left[int(rng.integers(len(left)))]


def _wrong_colour(scene: Scene, rng: Rng) -> np.ndarray:
    (group,) = scene.groups
    return draw(Scene((replace(group, colour=_other(tuple(COLOURS), group.colour, rng)),)), rng)


def _wrong_shape(scene: Scene, rng: Rng) -> np.ndarray:
    (group,) = scene.groups
    return draw(Scene((replace(group, shape=_other(SHAPES, group.shape, rng)),)), rng)


def _wrong_count(scene: Scene, rng: Rng) -> np.ndarray:
    (group,) = scene.groups
    counts = [count for count in (1, 2, 3) if count != group.count]
    return draw(Scene((replace(group, count=counts[int(rng.integers(2))]),)), rng)


def _blurred(scene: Scene, rng: Rng) -> np.ndarray:
    return ndimage.gaussian_filter(draw(scene, rng), sigma=(2.5, 2.5, 0))


def _noisy(scene: Scene, rng: Rng) -> np.ndarray:
    picture = draw(scene, rng)
    return np.clip(picture + rng.normal(0, 70, picture.shape), 0, 255).round().astype(np.uint8)


_FAULTS: dict[str, Callable[[Scene, Rng], np.ndarray]] = {
    "colour": _wrong_colour,
    "shape": _wrong_shape,
    "count": _wrong_count,
    "blur": _blurred,
    "noise": _noisy,
    "tie": draw,
}
