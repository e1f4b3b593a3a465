"""HPDv3's prompts: what people ask for, in twelve kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from evals.benchmarks.base import json_records, wanted
from evals.suites.base import Item, LocalCopy, Suite
from reward_models.base import RewardModel
from reward_models.vlm_rewards import hpsv3

_KINDS = (
    "Characters", "Arts", "Design", "Architecture", "Animals", "Natural Scenery", "Transportation", "Products",
    "Plants", "Food", "Science", "Others",
)  # fmt: skip


@dataclass(frozen=True)
class HPDv3(Suite, LocalCopy):
    """The prompts of the benchmark of HPSv3, which scores their pictures.

    Attributes:
        folder: Where `benchmark/benchmark_Animals.json` and the others are, or that folder.
        kinds: Which of the twelve.

    Source: HPSv3 (arXiv 2508.03789).
    """

    folder: str
    kinds: tuple[str, ...] = _KINDS

    licence: ClassVar[str] = "MIT"
    place: ClassVar[str] = "huggingface.co/datasets/MizzenAI/HPDv3, benchmark"

    def items(self) -> Sequence[Item]:
        """Return the prompts kind by kind."""
        found = []
        for kind in self.kinds:
            name = f"benchmark_{kind}.json"
            path, _ = self.text(self.folder, f"benchmark/{name}", name)
            for number, record in enumerate(json_records(path), start=1):
                found.append(Item(wanted(record, "caption", f"{path}, record {number}", str), kind))
        return found

    def rewards(self) -> Mapping[str, RewardModel]:
        """Return HPSv3."""
        return {"hpsv3": hpsv3.HPSv3()}
