"""A model that prefers bright pictures, whose every answer is known: an implementation of `Vlm` to test askers with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from reward_models.vlms.base import Question, Verdicts, Vlm

STRENGTH = 4.0


@dataclass(frozen=True)
class BrightVlm(Vlm):
    """Say yes with the log-odds of brightness: of the only picture above one half, or of the first above the second.

    Attributes:
        bias: Added to the log-odds of every comparison, as by a model that likes what it sees first.
        mass: p(yes) + p(no).
        written: What it writes, whatever it is asked; "%" stands for "1" or "2", the brighter one.
        asked: Every question, as it came.
    """

    bias: float = 0.0
    mass: float = 0.9
    written: str = ""
    asked: list[Question] = field(default_factory=list, repr=False, compare=False)

    differentiable: ClassVar[bool] = True

    def __str__(self) -> str:
        return "BrightVlm"

    def load(self, *, device: torch.device) -> _Bright:
        return _Bright(self)


@dataclass(frozen=True)
class _Bright:
    vlm: BrightVlm

    def verdicts(self, questions: Sequence[Question], *, reasoning: int = 0) -> Verdicts:
        self.vlm.asked.extend(questions)
        odds = []
        for question in questions:
            light = [clip.mean() for clip in question.clips[-2:]]
            odds.append(
                STRENGTH * (light[0] - (light[1] if len(light) > 1 else 0.5)) + self.vlm.bias * (len(light) - 1)
            )
        log_odds, mass = torch.stack(odds), torch.tensor(self.vlm.mass)
        return Verdicts(log_odds.sigmoid().log() + mass.log(), (-log_odds).sigmoid().log() + mass.log())

    def chances(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Tensor:
        """Return how bright the picture is, for answers that are yes, and how dark, for others."""
        self.vlm.asked.extend(questions)
        light = [question.clips[0].mean() for question in questions]
        return torch.stack([x if "yes" in one else 1 - x for x, one in zip(light, answers, strict=True)])

    def write(self, questions: Sequence[Question], *, tokens: int) -> list[str]:
        self.vlm.asked.extend(questions)
        brighter = ["1" if q.clips[0].mean() >= q.clips[-1].mean() else "2" for q in questions]
        return [self.vlm.written.replace("%", which) for which in brighter]
