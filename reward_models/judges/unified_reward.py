"""UnifiedReward, -Think and -Flex: models that write which of two is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reward_models.base import Media, PairwiseJudge, RewardError
from reward_models.vlm_rewards import written_answers
from reward_models.vlm_rewards.questions import check_prompt, clips_of, thinned
from reward_models.vlm_rewards.wording import read_wording
from reward_models.vlms.base import Reader, Vlm, plain

Form = Literal["sentence", "think", "flex", "shares"]

_ASKED = "Two generated results, Image 1 and Image 2, are shown above. Both were made from this text: [{prompt}]\n"
_BY = "Compare how well each follows the text and how well it is made.\n"
_SENTENCES = '"Image 1 is better", "Image 2 is better" or "Both images are equally good"'
_WORDING: dict[Form, str] = {
    "sentence": f"{_ASKED}{_BY}Close with {_SENTENCES}.",
    "think": f"{_ASKED}{_BY}Reason between <think> and </think>; then write {_SENTENCES} between <answer> and "
    "</answer>.",
    "flex": f"{_ASKED}{_BY}Choose three categories that matter for this text. Write one JSON object: "
    '"categories", a list of objects with "name", "analysis" and "cat_winner", and "winner". Winners are "Image 1" or '
    '"Image 2".',
    "shares": f"{_ASKED}For each of {{axes}}, share 1.0 between the two. Write, for each:\nNAME Score:\n Image 1: X\n "
    "Image 2: Y",
}


@dataclass(frozen=True)
class UnifiedReward(PairwiseJudge):
    """Ask a UnifiedReward model, or one prompted like it, and read its verdict.

    The models judge best in the words they were trained on, which stand in their authors' repository: put them into a
    file and name it as `template`. Without one we ask in our own words for the same form of answer. A verdict that
    cannot be read is none (NaN), never a tie.

    Attributes:
        vlm: The model that is asked, usually an endpoint.
        form: What it writes: a closing "sentence" (UnifiedReward), the sentence between <answer> tags ("think"), a JSON
            report ("flex"), or "shares" of 1 for each axis (UnifiedReward 2.0).
        template: File with the question; "{prompt}" stands for the prompt. The pictures come before it.
        axes: What "shares" are given for.
        categories_weight: Share of a report's categories in the result; the rest is its overall winner.
        tokens: Length at which an answer is cut off.
        frames: Frames of a clip that are shown, evenly spread.
        fps: Frames per second that are assumed of clips without a frame rate.

    Source: UnifiedReward (arXiv 2503.05236), -Think (2505.03318), -Flex; the group's win rate is Pref-GRPO's (arXiv
    2508.20751). There, each pair is asked in one order and an unreadable answer is a tie; here both are the business of
    `win_rate`, which asks both ways round and leaves out what was not answered.
    """

    vlm: Vlm
    form: Form = "think"
    template: str | None = None
    axes: tuple[str, ...] = ("Alignment", "Coherence", "Style")
    categories_weight: float = 0.5
    tokens: int = 4096
    frames: int = 8
    fps: float = 16.0

    def __post_init__(self) -> None:
        if not 0 <= self.categories_weight <= 1 or not self.axes or min(self.tokens, self.frames) < 1 or self.fps <= 0:
            raise RewardError(
                "unified_reward: categories_weight is in [0, 1], there is an axis, tokens and frames are >= 1, fps > 0"
            )

    def __str__(self) -> str:
        """Return the name, and whose answer it is."""
        return f"UnifiedReward of {self.vlm}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse a template that cannot be used, and prompts that are empty or too long."""
        read_wording(self.template, "")
        for prompt in prompts:
            check_prompt(prompt)

    def waits(self) -> bool:
        """Return whether the model that is asked does."""
        return self.vlm.waits()

    def load(self, *, device: torch.device) -> _UnifiedComparer:
        """Load the model that is asked."""
        wording = read_wording(self.template, _WORDING[self.form].replace("{axes}", ", ".join(self.axes)))
        return _UnifiedComparer(self, wording, self.vlm.load(device=device))


@dataclass(frozen=True)
class _UnifiedComparer:
    judge: UnifiedReward
    wording: str
    reader: Reader

    def __call__(self, *, first: Media, second: Media, prompts: Sequence[str]) -> Tensor:
        """Compare row by row; see `Comparer`."""
        judge, questions = self.judge, []
        for one, other, prompt in zip(clips_of(first), clips_of(second), prompts, strict=True):
            check_prompt(prompt)
            text = self.wording.replace("{prompt}", plain(prompt))
            questions.append(thinned((one.detach(), other.detach(), text), first.fps or judge.fps, judge.frames))
        read = [self._read(text) for text in self.reader.write(questions, tokens=judge.tokens)]
        return torch.tensor(read, dtype=torch.float32, device=first.pixels.device)

    def _read(self, text: str) -> float:
        if self.judge.form == "shares":
            return written_answers.shares(text, self.judge.axes)
        if self.judge.form == "flex":
            return written_answers.report(text, self.judge.categories_weight)
        return written_answers.answer(text) if self.judge.form == "think" else written_answers.sentence(text)
