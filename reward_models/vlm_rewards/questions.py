"""What a judge is asked: instruction, criteria, and the questions made of them.

The wording is ours. A model that was trained on other words judges best when asked in those: `instruction` replaces the
task, and `criteria` what is judged by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_models.base import Media, RewardError
from reward_models.vlms.base import CUE, NO, YES, Question, plain

LONGEST_PROMPT = 4000
"""Characters; beyond this a judge reads more prompt than picture."""

PLAIN_ANSWER = f"Answer {YES} or {NO}."
_REASONED_ANSWER = f"Think it through first, then end with one line: '{CUE} {YES}' or '{CUE} {NO}'."

Clip = Tensor
"""`[F, 3, H, W]` in [0, 1]; F = 1 is a picture."""


@dataclass(frozen=True)
class JudgeInput:
    """What a judge is shown of a batch.

    Attributes:
        clips: A sample per row; rows may differ in size.
        prompts: One text per row.
        sources: What each row was made from; None where there was only text.
        fps: Frames per second of the clips; None where it is not known.
    """

    clips: Sequence[Clip]
    prompts: Sequence[str]
    sources: Sequence[Clip] | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Task:
    """How a yes-or-no question is put to a model that sees.

    Attributes:
        instruction: What the model is asked to do, before everything else.
        criteria: What it judges by, one per line; none leaves it to the model.
        alone: The question about one picture or clip.
        against: The question about the first of two.
        reasoning: Tokens it may write before the verdict; 0 asks for the verdict at once.
        frames: Frames of a clip that are shown, evenly spread; its first and last are among them.
        fps: Frames per second that are assumed of clips without a frame rate.
    """

    instruction: str = "You judge what a generator made from a text."
    criteria: tuple[str, ...] = ("It shows what the text says.", "It is well made and has no artefacts.")
    alone: str = "Is it a good result for the text?"
    against: str = "Is number 1 better than number 2?"
    reasoning: int = 0
    frames: int = 8
    fps: float = 16.0

    def __post_init__(self) -> None:
        if self.reasoning < 0 or self.frames < 1 or self.fps <= 0:
            raise RewardError(
                f"task: reasoning is >= 0, frames >= 1, fps > 0; got {self.reasoning}, {self.frames}, {self.fps}"
            )

    def about(self, asked: JudgeInput) -> list[Question]:
        """Ask about each sample by itself."""
        shown = [["\nThe result:\n", clip] for clip in asked.clips]
        return [self._question(asked, row, pieces, self.alone) for row, pieces in enumerate(shown)]

    def between(self, asked: JudgeInput, others: Sequence[Clip]) -> list[Question]:
        """Ask whether each sample is better than the other clip of its row."""
        return self._pairs(asked, zip(asked.clips, others, strict=True))

    def between_reversed(self, asked: JudgeInput, others: Sequence[Clip]) -> list[Question]:
        """Ask whether the other clip of each row is better than the sample."""
        return self._pairs(asked, zip(others, asked.clips, strict=True))

    def _pairs(self, asked: JudgeInput, pairs: Iterable[tuple[Clip, Clip]]) -> list[Question]:
        shown = [["\nNumber 1:\n", first, "\nNumber 2:\n", second] for first, second in pairs]
        return [self._question(asked, row, pieces, self.against) for row, pieces in enumerate(shown)]

    def _question(self, asked: JudgeInput, row: int, pieces: Sequence[str | Clip], question: str) -> Question:
        """Ask: instruction, what is judged, its text and the criteria, the question.

        Pictures come before the words that they are judged by, as in most data that such models have learned from: a
        word can then look at the picture, and not the other way round.
        """
        check_prompt(asked.prompts[row])
        source = None if asked.sources is None else asked.sources[row]
        given = [] if source is None else ["\nWhat it was made from:\n", source]
        by = "".join(f"\n- {criterion}" for criterion in self.criteria)
        closing = [f"\nThe text: {plain(asked.prompts[row])}", f"\nJudge by:{by}" if by else "", f"\n{question} "]
        answer = _REASONED_ANSWER if self.reasoning else PLAIN_ANSWER
        whole = (self.instruction, *given, *pieces, "".join(closing) + answer)
        return thinned(whole, asked.fps or self.fps, self.frames)


def thinned(pieces: Sequence[str | Clip], fps: float, frames: int) -> Question:
    """Return a question that shows at most so many frames of each clip, evenly spread over it, at its own speed.

    Args:
        pieces: Texts and clips in the order in which they are shown.
        fps: Frames per second of the clips.
        frames: How many are shown.
    """
    longest = max(len(piece) for piece in pieces if not isinstance(piece, str))
    rate = fps * (frames - 1) / (longest - 1) if 1 < frames < longest else fps
    return Question(tuple(piece if isinstance(piece, str) else _spread(piece, frames) for piece in pieces), rate)


def clips_of(media: Media) -> list[Clip]:
    """Return the rows."""
    return list(media.pixels)


def asked_of(media: Media, prompts: Sequence[str]) -> JudgeInput:
    """Return samples as a judge sees them."""
    return JudgeInput(clips_of(media), prompts, None if media.source is None else clips_of(media.source), media.fps)


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that no judge can compare a picture with.

    Raises:
        RewardError: If it is empty or too long.
    """
    if not prompt.strip():
        raise RewardError("a judge was given an empty prompt: there is nothing to compare the picture with")
    if len(prompt) > LONGEST_PROMPT:
        raise RewardError(
            f"a judge was given a prompt of {len(prompt):,} characters ({prompt[:40]!r}...); at most "
            f"{LONGEST_PROMPT:,} are read: shorten it"
        )


def _spread(clip: Clip, frames: int) -> Clip:
    """Return at most `frames` frames of a clip, evenly spread over it."""
    if len(clip) <= frames:
        return clip
    return clip[torch.linspace(0, len(clip) - 1, frames).round().long()]
