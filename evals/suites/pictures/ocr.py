"""Text rendering: prompts that say in quotation marks what is to be written in the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from alignment.errors import DataError
from evals.suites.base import Item, LocalCopy, Published, Suite, lines
from reward_models.base import RewardModel
from reward_models.verifiers import ocr


@dataclass(frozen=True)
class OCR(Suite, LocalCopy):
    """1,018 prompts that Flow-GRPO tests with, or those that it trains on; scored by what can be read in the picture.

    Attributes:
        folder: A copy of its repository, with `dataset/ocr/test.txt`, or that folder.
        split: Which of the two files.

    Source: Flow-GRPO (arXiv 2505.05470).
    """

    folder: str
    split: Literal["test", "train"] = "test"

    licence: ClassVar[str] = "MIT"
    place: ClassVar[str] = "github.com/yifan123/flow_grpo"
    published: ClassVar[tuple[Published, ...]] = (
        Published("Stable Diffusion 3.5 medium", "OCR accuracy", 0.59, "Flow-GRPO, arXiv 2505.05470"),
        Published("the same after Flow-GRPO", "OCR accuracy", 0.92, "Flow-GRPO, arXiv 2505.05470"),
    )

    def items(self) -> Sequence[Item]:
        """Return the prompts in the file's order."""
        path, text = self.text(self.folder, f"dataset/ocr/{self.split}.txt", f"{self.split}.txt")
        prompts = lines(path, text)
        for prompt in prompts:
            if len(prompt.split('"')) < 3:
                raise DataError(
                    f"{path}: {prompt[:60]!r} has no text between double quotes, so nothing is to be written; is it "
                    "the file of dataset/ocr?"
                )
        return [Item(prompt) for prompt in prompts]

    def rewards(self) -> Mapping[str, RewardModel]:
        """Return the reader of texts: the formula is Flow-GRPO's, the recogniser is not."""
        return {"ocr": ocr.OCR()}
