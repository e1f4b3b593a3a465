"""UnifiedReward's marks from 1 to 5 for a single sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from reward_models.base import Media, RewardError, RewardModel, Rewards
from reward_models.vlm_rewards.questions import check_prompt, clips_of, thinned
from reward_models.vlm_rewards.wording import read_wording
from reward_models.vlm_rewards.written_answers import marks
from reward_models.vlms.base import Reader, Vlm, plain

_WORDING = (
    "Above is what a generator made from this text: [{prompt}]\nMark it from 1 to 5 in each respect. Write one line "
    "for each of {axes}:\nNAME Score (1-5): X"
)


@dataclass(frozen=True)
class UnifiedReward(RewardModel):
    """Ask a UnifiedReward model, or one prompted like it, for marks; the score is their mean, put on [0, 1].

    A sample without a readable mark for every axis has no score. Parts: each axis' mark, from 1 to 5.

    Attributes:
        vlm: The model that is asked, usually an endpoint.
        axes: What is marked: Alignment, Coherence and Style (UnifiedReward 2.0 on pictures), Alignment, Physics and
            Style (on clips), or Final alone (1.x).
        template: File with the question in its authors' words; "{prompt}" stands for the prompt. The pictures come
            before it. Null asks in ours.
        tokens: Length at which an answer is cut off.
        frames: Frames of a clip that are shown, evenly spread.
        fps: Frames per second that are assumed of clips without a frame rate.

    Source: UnifiedReward (arXiv 2503.05236). Peers turn an answer that cannot be read into 0.
    """

    vlm: Vlm
    axes: tuple[str, ...] = ("Alignment", "Coherence", "Style")
    template: str | None = None
    tokens: int = 256
    frames: int = 8
    fps: float = 16.0

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.axes or min(self.tokens, self.frames) < 1 or self.fps <= 0:
            raise RewardError("unified_reward: there is an axis, tokens and frames are >= 1, fps > 0")

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

    def load(self, *, device: torch.device) -> _UnifiedScorer:
        """Load the model that is asked."""
        wording = read_wording(self.template, _WORDING.replace("{axes}", ", ".join(self.axes)))
        return _UnifiedScorer(self, wording, self.vlm.load(device=device))


@dataclass(frozen=True)
class _UnifiedScorer:
    model: UnifiedReward
    wording: str
    reader: Reader

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`."""
        questions = []
        for clip, prompt in zip(clips_of(media), prompts, strict=True):
            check_prompt(prompt)
            text = self.wording.replace("{prompt}", plain(prompt))
            questions.append(thinned((clip.detach(), text), media.fps or self.model.fps, self.model.frames))
        written = self.reader.write(questions, tokens=self.model.tokens)
        read = torch.tensor([marks(text, self.model.axes) for text in written], dtype=torch.float32)
        read = read.to(media.pixels.device)
        return Rewards((read.mean(1) - 1) / 4, dict(zip(self.model.axes, read.unbind(1), strict=True)))
