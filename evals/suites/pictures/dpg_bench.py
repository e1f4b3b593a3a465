"""DPG-Bench: 1,065 long prompts, each a web of statements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignment.errors import DataError
from evals.suites.base import Item, LocalCopy, Published, Suite, decoded


@dataclass(frozen=True)
class DPGBench(Suite, LocalCopy):
    """Prompts of 200 to 900 letters, far beyond what CLIP reads. What it asks about them is not asked here.

    Attributes:
        folder: A copy of `dpg_bench`, with a file for each prompt in `prompts`, or that folder.

    Source: ELLA (arXiv 2403.05135).
    """

    folder: str

    licence: ClassVar[str] = "Apache-2.0"
    place: ClassVar[str] = "github.com/TencentQQGYLab/ELLA, dpg_bench"
    pictures: ClassVar[int] = 4
    scored: ClassVar[str] = "mPLUG, asked about each statement"
    published: ClassVar[tuple[Published, ...]] = (
        Published("Stable Diffusion 3.5 medium", "DPG", 84.24, "ViPO, arXiv 2604.24953"),
        Published("FLUX.1-dev", "DPG", 83.84, "ViPO, arXiv 2604.24953"),
    )

    def items(self) -> Sequence[Item]:
        """Return the prompts by the names of their files; all samples of one are in the 2 x 2 picture of that name."""
        own = Path(self.folder)
        files = sorted([*own.glob("prompts/*.txt"), *own.glob("dpg_bench/prompts/*.txt")] or own.glob("*.txt"))
        if not files:
            self.text(self.folder, "prompts/*.txt")
        found = [Item(decoded(path).strip()) for path in files]
        if blank := [path for path, item in zip(files, found, strict=True) if not item.prompt]:
            raise DataError(f"{blank[0]} is empty")
        return found
