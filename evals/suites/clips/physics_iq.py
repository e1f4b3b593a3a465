"""Physics-IQ: how real scenes go on from a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from alignment.errors import DataError
from evals.benchmarks.base import wanted
from evals.suites.base import Item, LocalCopy, Published, Suite, called, table

_NAMES = ("descriptions_original.csv", "descriptions.csv")
_FRAMES = ("physics-IQ-benchmark/switch-frames", "switch-frames")
_PAPER = "Physics-IQ, arXiv 2501.09038, image to video"


@dataclass(frozen=True)
class PhysicsIQ(Suite, LocalCopy):
    """198 prompts: 66 scenes from three sides, each with the frame at which the generator takes over; five categories.

    Attributes:
        folder: A copy of its repository, with the descriptions, and in it `physics-IQ-benchmark` from its bucket.
        descriptions: Another table of prompts, such as one that was worded for a model; empty for the original.

    Source: Physics-IQ (arXiv 2501.09038).
    """

    folder: str
    descriptions: str = ""

    licence: ClassVar[str] = "CC BY 4.0"
    place: ClassVar[str] = (
        "github.com/google-deepmind/physics-IQ-benchmark, with physics-IQ-benchmark/switch-frames from its bucket "
        "(gs://physics-iq-benchmark)"
    )
    scored: ClassVar[str] = "what moves where and when, against two takes of the real scene"
    published: ClassVar[tuple[Published, ...]] = (
        Published("Runway Gen 3", "Physics-IQ score, %", 22.8, _PAPER),
        Published("VideoPoet", "Physics-IQ score, %", 20.3, _PAPER),
        Published("Lumiere", "Physics-IQ score, %", 19.0, _PAPER),
        Published("Stable Video Diffusion", "Physics-IQ score, %", 14.8, _PAPER),
        Published("Pika", "Physics-IQ score, %", 13.0, _PAPER),
        Published("Sora", "Physics-IQ score, %", 10.0, _PAPER),
    )

    def items(self) -> Sequence[Item]:
        """Return the prompts of the first takes, with their frames; clips are called as the table says."""
        if self.descriptions:
            path, text = self.text(str(Path(self.descriptions).parent), Path(self.descriptions).name)
        else:
            path, text = self.text(self.folder, *(f"descriptions/{name}" for name in _NAMES), *_NAMES)
        frames = self._frames()
        found: dict[str, Item] = {}
        for number, row in enumerate(table(path, text), start=1):
            place = f"{path}, row {number}"
            scenario, prompt, category, clip = (
                wanted(row, key, place, str) for key in ("scenario", "description", "category", "generated_video_name")
            )
            parts = scenario.split("_")
            if len(parts) != 4:
                raise DataError(f"{place}: scenario is {scenario!r}, expected NUMBER_PERSPECTIVE_TAKE_SCENE.mp4")
            if parts[2] == "take-1":
                own = f"{parts[0]}_switch-frames_anyFPS_{parts[1]}_{Path(parts[3]).stem}.jpg"
                if own in found:
                    raise DataError(f"{place}: {scenario} occurs twice")
                start, own_name = self.starting(prompt, frames, own, place), called(place, Path(clip).stem)
                found[own] = Item(start, category, (own_name,))
        if not found:
            raise DataError(f"{path} has no scenario of take-1, and those are the ones to generate")
        return list(found.values())

    def _frames(self) -> Path:
        for name in _FRAMES:
            if (found := Path(self.folder) / name).is_dir():
                return found
        raise self.lacking(self.folder, *_FRAMES)
