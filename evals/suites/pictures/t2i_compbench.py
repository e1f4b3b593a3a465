"""T2I-CompBench++: attributes, relations, numbers and their mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from evals.suites.base import Item, LocalCopy, Suite, lines

_PARTS = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")


@dataclass(frozen=True)
class T2ICompBench(Suite, LocalCopy):
    """The 300 validation prompts of each of eight parts.

    Attributes:
        folder: A copy of its repository, with `examples/dataset/color_val.txt` and the others, or that folder.
        parts: Which of the parts.

    Source: T2I-CompBench++ (arXiv 2307.06350).
    """

    folder: str
    parts: tuple[str, ...] = _PARTS

    licence: ClassVar[str] = "MIT"
    place: ClassVar[str] = "github.com/Karine-Huang/T2I-CompBench"
    pictures: ClassVar[int] = 10
    scored: ClassVar[str] = "BLIP-VQA, UniDet and CLIPScore, part by part"

    def items(self) -> Sequence[Item]:
        """Return the prompts part by part; a prompt's sample is `PROMPT_000003`, numbered through the part."""
        found = []
        for part in self.parts:
            path, text = self.text(self.folder, f"examples/dataset/{part}_val.txt", f"{part}_val.txt")
            found += [Item(prompt, part) for prompt in lines(path, text)]
        return found
