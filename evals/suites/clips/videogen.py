"""Prompts for clips that VideoAlign compares generators on: of VideoGen-Eval and VBench, and its own hard ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from evals.benchmarks.base import wanted
from evals.suites.base import Item, LocalCopy, Suite, table


@dataclass(frozen=True)
class VideoGen(Suite, LocalCopy):
    """400 prompts of VideoGen-Eval, 72 of TA-Hard and 946 of VBench, as VideoAlign words them; sets are categories.

    Attributes:
        folder: A copy of its repository, with `datasets/video_eval_prompts`, or that folder.
        sets: Whose prompts are used.
        wording: The column: as it was reworded, shorter (not in TA-Hard), or Chinese.

    Source: VideoAlign (arXiv 2501.13918); VideoGen-Eval (arXiv 2503.23452).
    """

    folder: str
    sets: tuple[Literal["videogen_eval", "TA_hard", "vbench"], ...] = ("videogen_eval", "TA_hard", "vbench")
    wording: Literal["prompt", "prompt_shorter", "prompt_zh"] = "prompt"

    licence: ClassVar[str] = "MIT"
    place: ClassVar[str] = "github.com/KwaiVGI/VideoAlign, datasets/video_eval_prompts"
    scored: ClassVar[str] = "people, and VideoAlign: `--reward videoalign`"

    def items(self) -> Sequence[Item]:
        """Return the prompts set by set, each in its file's order."""
        found = []
        for part in self.sets:
            path, text = self.text(self.folder, f"datasets/video_eval_prompts/{part}.csv", f"{part}.csv")
            for number, row in enumerate(table(path, text), start=1):
                found.append(Item(wanted(row, self.wording, f"{path}, row {number}", str), part))
        return found
