"""The benchmark of HPSv2: 3,200 prompts of four styles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from alignment.errors import DataError
from evals.benchmarks.base import json_of
from evals.suites.base import Item, LocalCopy, Published, Suite
from reward_models.base import RewardModel
from reward_models.clip_family import hpsv2

_STYLES = ("anime", "concept-art", "paintings", "photo")


@dataclass(frozen=True)
class HPDv2(Suite, LocalCopy):
    """800 prompts of each style, scored by HPSv2.1; the tables of its authors have a hundred times the score.

    Attributes:
        folder: Where `benchmark/anime.json` and the others are, or that folder.

    Source: HPSv2 (arXiv 2306.09341).
    """

    folder: str

    licence: ClassVar[str] = "Apache-2.0"
    place: ClassVar[str] = "huggingface.co/datasets/ymhao/HPDv2"
    published: ClassVar[tuple[Published, ...]] = (
        Published("FLUX.1-dev", "HPSv2.1", 0.304, "DanceGRPO, arXiv 2505.07818"),
        Published("FLUX.1-dev", "HPSv2.1", 0.313, "MixGRPO"),
        Published("Stable Diffusion 1.4", "HPSv2.1", 0.239, "DanceGRPO, arXiv 2505.07818"),
    )

    def items(self) -> Sequence[Item]:
        """Return the prompts style by style; the picture of the tenth of a style is `anime/00009`."""
        found = []
        for style in _STYLES:
            path, _ = self.text(self.folder, f"benchmark/{style}.json", f"{style}.json")
            prompts = json_of(path)
            if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
                raise DataError(f"{path} should hold a list of texts")
            found += [Item(prompt, style, (f"{style}/{n:05d}",)) for n, prompt in enumerate(prompts)]
        return found

    def rewards(self) -> Mapping[str, RewardModel]:
        """Return HPSv2.1."""
        return {"hpsv2": hpsv2.HPSv2()}
