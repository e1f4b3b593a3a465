"""GenEval: objects, their number, colours and places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from evals.benchmarks.base import json_records, wanted
from evals.suites.base import Item, LocalCopy, Published, Suite
from reward_models.base import RewardModel
from reward_models.verifiers import geneval


@dataclass(frozen=True)
class GenEval(Suite, LocalCopy):
    """553 prompts of six kinds, each a category; the benchmark's number is the mean of the six.

    Attributes:
        folder: A copy of its repository, with `prompts/evaluation_metadata.jsonl`, or that folder.

    Source: GenEval (arXiv 2310.11513).
    """

    folder: str

    licence: ClassVar[str] = "MIT"
    place: ClassVar[str] = "github.com/djghosh13/geneval"
    pictures: ClassVar[int] = 4
    published: ClassVar[tuple[Published, ...]] = (
        Published("Stable Diffusion 1.5", "overall", 0.4234, "ViPO, arXiv 2604.24953"),
        Published("Stable Diffusion XL", "overall", 0.55, "DiffusionNFT, arXiv 2509.16117"),
        Published("Stable Diffusion 3.5 medium", "overall", 0.63, "Flow-GRPO, arXiv 2505.05470"),
        Published("FLUX.1-dev", "overall", 0.66, "Flow-GRPO, arXiv 2505.05470"),
    )

    def items(self) -> Sequence[Item]:
        """Return the prompts in the file's order; samples of the tenth are `00009/samples/0000`."""
        name = "evaluation_metadata.jsonl"
        path, _ = self.text(self.folder, f"prompts/{name}", name)
        found = []
        for number, record in enumerate(json_records(path)):
            place = f"{path}, record {number + 1}"
            prompt, tag = (wanted(record, key, place, str) for key in ("prompt", "tag"))
            found.append(Item(prompt, tag, (f"{number:05d}/samples/{{k:04d}}", f"{number:05d}/samples/{{k:05d}}")))
        return found

    def rewards(self) -> Mapping[str, RewardModel]:
        """Return the verifier; its detector is another training run than GenEval's, as `visalign rewards` says."""
        return {"geneval": geneval.GenEval(verdict="correct")}
