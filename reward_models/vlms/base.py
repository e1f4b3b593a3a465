"""What a vision-language model does for a judge: it reads pictures and text, and answers yes or no, or writes.

A `Vlm` is a light description; `load` gives a `Reader`. Two kinds exist: a model in this process (`local`), whose
answers can be differentiated to the pixels, and a served one (`endpoint`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

YES, NO = "yes", "no"
CUE = "Verdict:"
"""What stands before the answer where the model reasons first."""

_MARK = re.compile(r"<(?=[|/a-zA-Z])|\[(?=/?[A-Z_]+\])")


@dataclass(frozen=True)
class Question:
    """One turn of a user.

    Attributes:
        pieces: Texts and clips `[F, 3, H, W]` in [0, 1], in the order they are read; F = 1 is a picture. Questions
            that are asked together have as many clips each, of as many frames.
        fps: Frames per second of the clips.
    """

    pieces: tuple[str | Tensor, ...]
    fps: float

    @property
    def clips(self) -> list[Tensor]:
        """The clips alone."""
        return [piece for piece in self.pieces if isinstance(piece, Tensor)]


@dataclass(frozen=True)
class Verdicts:
    """What a model would answer.

    Attributes:
        yes: `[B]` float32, log-probability that the next word is "yes" in any spelling; NaN where there was no verdict.
        no: The same for "no".
    """

    yes: Tensor
    no: Tensor

    @property
    def reversed(self) -> Verdicts:
        """The verdicts on the opposite question."""
        return Verdicts(self.no, self.yes)

    @property
    def mass(self) -> Tensor:
        """Probability that the answer is one of the two words, `[B]`; small if the question was misunderstood."""
        return self.yes.exp() + self.no.exp()

    @property
    def log_odds(self) -> Tensor:
        """Log of p(yes) / p(no), `[B]`."""
        return self.yes - self.no


class Reader(Protocol):
    """A model that is ready to read."""

    def verdicts(self, questions: Sequence[Question], *, reasoning: int = 0) -> Verdicts:
        """Return how likely yes and no are as the answer to each question.

        Args:
            questions: One per row.
            reasoning: Tokens the model may write before the answer, which then follows `CUE`; with 0 it answers at
                once. If it reaches no verdict, both are NaN.

        Raises:
            RewardError: If the model cannot be asked.
        """
        ...

    def chances(self, questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> Tensor:
        """Return the probability that the answer to each question begins with one of these, `[B]` float32.

        Args:
            questions: One per row.
            answers: Spellings of the answer of each row; of each, its first token counts.

        Raises:
            RewardError: If the model cannot be asked.
        """
        ...

    def write(self, questions: Sequence[Question], *, tokens: int) -> list[str]:
        """Return what the model writes in answer to each question, the likeliest word at each place.

        Args:
            questions: One per row.
            tokens: Length at which it is cut off.
        """
        ...


@runtime_checkable
class Vlm(Protocol):
    """A light, frozen description of a vision-language model."""

    home: ClassVar[str] = "reward_models.vlms"
    differentiable: ClassVar[bool]

    def load(self, *, device: torch.device) -> Reader:
        """Return the model, ready to read."""
        ...

    def waits(self) -> bool:
        """Return whether another process does the reading; no, by default."""
        return False

    def __str__(self) -> str:
        """Return the name under which messages speak of it."""
        ...


def spells(token: str, word: str) -> bool:
    """Return whether a token is this word, with or without capitals and spaces around it."""
    return token.strip().lower() == word


def plain(text: str) -> str:
    """Return a user's text in which no tokenizer finds a control token.

    A prompt with "<|im_end|>" or "</answer>" in it could otherwise end the question and answer it.
    """
    return _MARK.sub(lambda mark: mark[0] + " ", text)


def fit(clip: Tensor, side: int | None) -> Tensor:
    """Return the clip `[F, 3, H, W]` scaled down so that its longer side is at most `side` pixels."""
    height, width = clip.shape[-2:]
    if side is None or max(height, width) <= side:
        return clip
    size = [max(1, round(length * side / max(height, width))) for length in (height, width)]
    return interpolate(clip.float(), size=size, mode="bicubic", antialias=True).clamp(0, 1)
