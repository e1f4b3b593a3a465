"""ImgEdit-Bench: pictures to be edited in nine ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignment.errors import DataError
from evals.benchmarks.base import json_of, wanted
from evals.suites.base import Item, LocalCopy, Published, Suite, called

_NAMES = (
    "singleturn/singleturn.json", "Benchmark/singleturn/singleturn.json", "singleturn.json",
    "Benchmark/Basic/basic_edit.json", "basic_edit.json",
)  # fmt: skip
_OTHERS = "GPT-Image-Edit, arXiv 2507.21033"


@dataclass(frozen=True)
class ImgEdit(Suite, LocalCopy):
    """The 737 edits of its basic suite, each a picture and what to do with it; the kinds of edits are categories.

    Attributes:
        folder: What its `Benchmark.tar` holds, with `singleturn/singleturn.json` and the pictures beside that; or a
            copy of its repository, which has the edits alone.
        originals: Where the pictures are, if not beside the edits.

    Source: ImgEdit (arXiv 2505.20275).
    """

    folder: str
    originals: str = ""

    licence: ClassVar[str] = "not stated"
    place: ClassVar[str] = "huggingface.co/datasets/sysuyy/ImgEdit, Benchmark.tar"
    scored: ClassVar[str] = "GPT-4o, asked for three marks of 1 to 5 by the kind of the edit"
    published: ClassVar[tuple[Published, ...]] = (
        Published("InstructPix2Pix", "overall, of 5", 1.88, _OTHERS),
        Published("UltraEdit", "overall, of 5", 2.70, _OTHERS),
        Published("Step1X-Edit", "overall, of 5", 3.06, _OTHERS),
        Published("BAGEL", "overall, of 5", 3.20, _OTHERS),
        Published("OmniGen2", "overall, of 5", 3.44, _OTHERS),
        Published("FLUX.1 Kontext dev", "overall, of 5", 3.52, _OTHERS),
        Published("GPT-4o", "overall, of 5", 4.20, _OTHERS),
        Published("FLUX.1 Kontext pro", "overall, of 5", 4.00, "technical report of Qwen-Image"),
        Published("Qwen-Image", "overall, of 5", 4.27, "technical report of Qwen-Image"),
    )

    def items(self) -> Sequence[Item]:
        """Return the edits in the file's order; the picture of edit 1082 is called `1082`."""
        path, _ = self.text(self.folder, *_NAMES)
        edits = json_of(path)
        if not isinstance(edits, dict) or not edits or not all(isinstance(edit, dict) for edit in edits.values()):
            raise DataError(f"{path} should hold an object of edits by their numbers")
        originals, found = Path(self.originals or path.parent), []
        for own, edit in edits.items():
            place = f"{path}, edit {own}"
            picture, prompt, kind = (wanted(edit, key, place, str) for key in ("id", "prompt", "edit_type"))
            found.append(Item(self.starting(prompt, originals, picture, place), kind, (called(place, own),)))
        return found
