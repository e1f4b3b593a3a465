"""Soft-TIFA: how sure is a vision-language model of the right answer to each question about a prompt?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from reward_models.base import Media, RewardError, RewardModel, Rewards, Scorer
from reward_models.loading.by_prompt import read_by_prompt
from reward_models.loading.inputs import check_media, check_prompts
from reward_models.vlm_rewards.questions import clips_of, thinned
from reward_models.vlms.base import Reader, Vlm

_NAME = "soft_tifa"
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_COUNT = "How many"
"""How questions begin whose answer is a number; the answer to all others is yes."""
_FRAMES = 8
"""Of a clip that are shown."""
_FPS = 16.0
"""Frames per second that are assumed of clips without a frame rate."""
_FORM = '{"prompt": TEXT, "vqa_list": [[QUESTION, ANSWER], ...]}'


@dataclass(frozen=True)
class SoftTIFA(RewardModel):
    """Score the mean, over questions about the prompt, of the probability that a model gives the right answer.

    Parts: "product", the geometric mean, low where one answer is wrong, and "mean", the arithmetic one.

    Attributes:
        vlm: The model that is asked; published numbers are those of Qwen/Qwen3-VL-8B-Instruct.
        questions: A `.jsonl` file with the questions about each prompt, such as GenEval 2's `geneval2_data.jsonl`; an
            object with "prompt" and "vqa_list" per line. Counts are answered by a word, everything else by Yes.
        score: Which of the two means is the score.

    Source: GenEval 2 (arXiv 2512.16853), Soft-TIFA: the probability of the answer's first token, in any of four
        spellings and as a figure. A served model reports its likeliest tokens only; an answer that is not among them
        counts as 0, and is compared as a word and not by its first token.
    """

    vlm: Vlm
    questions: str
    score: Literal["product", "mean"] = "product"

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """Whether gradients reach the pixels: in a model of this process they do."""
        return self.vlm.differentiable

    def __str__(self) -> str:
        """Return the name, and whose answer it is."""
        return f"SoftTIFA by {self.vlm}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that the file has no questions about."""
        check_prompts(_NAME, prompts)
        asked = read_questions(self.questions)
        for prompt in prompts:
            _about(prompt, asked, self.questions)

    def waits(self) -> bool:
        """Return whether the model that is asked does."""
        return self.vlm.waits()

    def load(self, *, device: torch.device) -> Scorer:
        """Load the model that is asked."""
        return _Asking(self, self.vlm.load(device=device))


@dataclass(frozen=True)
class _Asking:
    model: SoftTIFA
    reader: Reader

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`; see `SoftTIFA`."""
        check_media(_NAME, media, prompts)
        check_prompts(_NAME, prompts)
        asked = read_questions(self.model.questions)
        rows = [_about(prompt, asked, self.model.questions) for prompt in prompts]
        pairs = [
            (
                thinned((clip, f"{question} Answer in one word."), media.fps or _FPS, _FRAMES),
                spellings(question, answer),
            )
            for clip, row in zip(clips_of(media), rows, strict=True)
            for question, answer in row
        ]
        questions, answers = zip(*pairs, strict=True)
        chances = self.reader.chances(questions, answers).float().split([len(row) for row in rows])
        parts = {
            "product": torch.stack([p.log().mean().exp() for p in chances]),
            "mean": torch.stack([p.mean() for p in chances]),
        }
        return Rewards(parts[self.model.score], parts)


def spellings(question: str, answer: str) -> tuple[str, ...]:
    """Return the ways in which an answer may be written."""
    if not question.startswith(_COUNT):
        return ("Yes", "yes", " yes", " Yes")
    figure = (str(NUMBERS.index(answer) + 1),) if answer in NUMBERS else ()
    words = (answer, answer.capitalize(), *figure)
    return (*words, *(f" {word}" for word in words))


@cache
def read_questions(file: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return questions and answers of a `.jsonl` file, by prompt.

    Raises:
        RewardError: Naming the file and line that cannot be used.
    """
    return read_by_prompt(f"{_NAME}: questions", file, _told, _FORM)


def _told(record: object) -> tuple[str, tuple[tuple[str, str], ...]]:
    match record:
        case {"prompt": str() as prompt, "vqa_list": [_, *_] as listed}:
            asked = [tuple(pair) for pair in listed if isinstance(pair, list)]
        case _:
            raise ValueError("a prompt or its questions are missing")
    if len(asked) != len(listed) or not all(len(p) == 2 and all(isinstance(z, str) and z for z in p) for p in asked):
        raise ValueError("its questions are not pairs of texts")
    if odd := next((pair for pair in asked if not pair[0].startswith(_COUNT) and pair[1].lower() != "yes"), None):
        raise ValueError(f"the answer to {odd[0]!r} is {odd[1]!r}, expected Yes, or a count ({_COUNT} ...)")
    return prompt, tuple((question, answer) for question, answer in asked)


def _about(prompt: str, asked: dict[str, tuple[tuple[str, str], ...]], file: str) -> tuple[tuple[str, str], ...]:
    if prompt not in asked:
        raise RewardError(f"{_NAME}: {file} has no questions about the prompt {prompt[:80]!r}")
    return asked[prompt]
