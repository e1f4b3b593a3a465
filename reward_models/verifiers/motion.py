"""Does the clip show what its caption says, and does it move that way? Read from the pixels, without any network.

The reward of the tiny video pipeline: exact, fast (2 ms per clip of nine frames), and the same for the same clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import ClassVar

import torch

from reward_models.base import KnownAnswer, Media, RewardModel, Rewards
from reward_models.verifiers.drawn_media import check_strict, levels, understood
from reward_models.verifiers.movements import Grades, follow, grade, parse
from reward_models.verifiers.scenes import BACKGROUND, COLOURS, SIDE

_PARTS = tuple(field.name for field in fields(Grades))
_FRAMES = 9


@dataclass(frozen=True)
class Motion(RewardModel):
    """Judge clips by the movement their caption asks for, such as "a red circle moves left".

    value = strict * (everything is right, 0 or 1) + (1 - strict) * graded, in [0, 1]. Parts: "strict", "graded",
    "direction", "object" and "motion", see `reward_models/verifiers/movements.py`. A clip of one frame does not move.

    Attributes:
        strict: Weight of the all-or-nothing score, in [0, 1]; the rest is the graded one.
    """

    strict: float = 0.5

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_strict("motion", self.strict)

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are not in the language."""
        understood("motion", parse, prompts)

    def known_answers(self) -> tuple[KnownAnswer, ...]:
        """Return a red square that moves left, one that moves right, and one that stands still."""
        clips = torch.tensor(BACKGROUND).view(1, 1, 3, 1, 1).repeat(3, _FRAMES, 1, SIDE, SIDE)
        for row, pace in enumerate((-1, 1, 0)):
            for frame in range(_FRAMES):
                x = 12 + pace * frame
                clips[row, frame, :, 12:20, x : x + 8] = torch.tensor(COLOURS["red"])[:, None, None]
        says = "a red square that moves left moves left, and neither one that moves right nor a still one does"
        bands = ((0.99, 1.0), *(2 * [((1 - self.strict) / 2, (1 - self.strict) / 2)]))
        return (KnownAnswer(says, Media(clips / 255), ("a red square moves left",) * 3, bands),)

    def part_names(self) -> tuple[str, ...]:
        """Return what is judged by itself."""
        return _PARTS

    def right_or_wrong(self) -> tuple[str, ...]:
        """Return the all-or-nothing score, which is the whole score where it has all the weight."""
        return ("strict", *(("",) if self.strict == 1 else ()))

    def load(self, *, device: torch.device) -> _MotionScorer:
        """Return the scorer; it works on the CPU whatever the device is."""
        return _MotionScorer(self)


@dataclass(frozen=True)
class _MotionScorer:
    model: Motion

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score each clip.

        Args:
            media: Sides equal, and a multiple of 32 pixels; larger frames are averaged down to 32.
            prompts: Captions of the language; see `reward_models/verifiers/movements.py`.

        Raises:
            RewardError: If a prompt is not in the language, or the frames have another size.
        """
        asked = understood("motion", parse, prompts)
        tracks = follow(levels("motion", media.pixels))
        rows = [astuple(grade(movement, track)) for movement, track in zip(asked, tracks, strict=True)]
        scores = torch.tensor(rows, dtype=torch.float32, device=media.pixels.device).view(len(rows), len(_PARTS))
        parts = dict(zip(_PARTS, scores.unbind(1), strict=True))
        return Rewards(torch.lerp(parts["graded"], parts["strict"], self.model.strict), parts)
