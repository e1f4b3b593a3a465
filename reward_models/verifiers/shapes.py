"""Does the picture show what the caption asks for? Counted by a reader of simple shapes, without any network.

The reward of the tiny pipeline: exact, fast (0.15 ms per picture) and beyond dispute, so that an algorithm can
be watched to work or to fail on a laptop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from reward_models.base import KnownAnswer, Media, RewardModel, Rewards, Size
from reward_models.verifiers.drawn_media import check_strict, levels, understood
from reward_models.verifiers.scenes import BACKGROUND, COLOURS, SIDE, coverage, grade, parse, read


@dataclass(frozen=True)
class Shapes(RewardModel):
    """Judge pictures by the scene their caption asks for, such as "two red circles".

    value = strict * (everything is right, 0 or 1) + (1 - strict) * graded, in [0, 1]. Parts: "strict", "graded".

    Attributes:
        strict: Weight of the all-or-nothing score, in [0, 1]; the rest is the graded one.
        symmetric: Whether one object too many costs what one too few costs. With False too many is cheaper, and
            training learns to draw too many: a reward made to be hacked.
    """

    strict: float = 0.5
    symmetric: bool = True

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_strict("shapes", self.strict)

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are not in the language."""
        understood("shapes", parse, prompts)

    def known_answers(self) -> tuple[KnownAnswer]:
        """Return a drawn red circle, once under its own caption and once under another."""
        centre = np.arange(SIDE) + 0.5 - SIDE / 2
        circle = coverage("circle", centre[None, :], centre[:, None], size=SIDE / 3)[..., None]
        picture = (circle * np.array(COLOURS["red"]) + (1 - circle) * np.array(BACKGROUND)) / 255
        pixels = torch.from_numpy(picture).float().permute(2, 0, 1).expand(2, 1, -1, -1, -1)
        captions = ("a red circle", "a blue square")
        return (KnownAnswer("a red circle is one, and no blue square", Media(pixels), captions, ((1, 1), (0, 0.5))),)

    def size(self) -> Size:
        """Nothing: there is no network."""
        return Size()

    def part_names(self) -> tuple[str, ...]:
        """Return the two scores."""
        return ("strict", "graded")

    def right_or_wrong(self) -> tuple[str, ...]:
        """Return the all-or-nothing score, which is the whole score where it has all the weight."""
        return ("strict", *(("",) if self.strict == 1 else ()))

    def load(self, *, device: torch.device) -> _ShapesScorer:
        """Return the scorer; it works on the CPU whatever the device is."""
        return _ShapesScorer(self)


@dataclass(frozen=True)
class _ShapesScorer:
    model: Shapes

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score each picture; a clip gets the mean over its frames.

        Args:
            media: Sides equal, and a multiple of 32 pixels; larger pictures are averaged down to 32.
            prompts: Captions of the language; see `reward_models/verifiers/scenes.py`.

        Raises:
            RewardError: If a prompt is not in the language, or the pictures have another size.
        """
        scenes = understood("shapes", parse, prompts)
        pictures = levels("shapes", media.pixels)
        frames = pictures.shape[1]
        sights = read(pictures.reshape(-1, *pictures.shape[2:]))
        grades = [grade(scenes[i // frames], found, symmetric=self.model.symmetric) for i, found in enumerate(sights)]
        scores = torch.tensor(grades, dtype=torch.float32, device=media.pixels.device)
        strict, graded = scores.view(len(media), frames, 2).mean(1).unbind(1)
        return Rewards(torch.lerp(graded, strict, self.model.strict), {"strict": strict, "graded": graded})
