"""Captions of drawn scenes: the suite of the tiny pipeline, judged exactly, with no copy of anything."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from evals.drawing import draw
from evals.suites.base import Item, Suite
from reward_models.base import RewardModel
from reward_models.verifiers import shapes
from reward_models.verifiers.scenes import parse, single_captions


@dataclass(frozen=True)
class Shapes(Suite):
    """Captions such as "two red circles", judged by the reader of scenes; fidelity is measured against drawn ones.

    Attributes:
        split: "test", "dev" or "train", as the tiny pipeline was trained; "all" for the 54 captions.
    """

    split: Literal["train", "dev", "test", "all"] = "test"

    licence: ClassVar[str] = "made by a program"
    pictures: ClassVar[int] = 112

    @functools.cached_property
    def _captions(self) -> list[str]:
        return single_captions(None if self.split == "all" else self.split)

    def items(self) -> Sequence[Item]:
        """Return the captions; a category is a number of objects."""
        return [Item(caption, caption.partition(" ")[0]) for caption in self._captions]

    def rewards(self) -> Mapping[str, RewardModel]:
        """Return the reader of scenes."""
        return {"shapes": shapes.Shapes(strict=1.0)}

    def reference(self, number: int, seed: int) -> Tensor:
        """Draw a scene of a caption."""
        captions = self._captions
        drawn = draw(parse(captions[number % len(captions)]), np.random.default_rng([seed, number]))
        return torch.from_numpy(drawn).permute(2, 0, 1)[None].float() / 255
