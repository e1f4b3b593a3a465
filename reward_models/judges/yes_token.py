"""Which of two is better, by how sure a vision-language model is of "yes"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reward_models.base import Media, PairwiseJudge, RewardError
from reward_models.vlm_rewards.questions import Task, asked_of, check_prompt, clips_of
from reward_models.vlms.base import Reader, Vlm


@dataclass(frozen=True)
class YesToken(PairwiseJudge):
    """Ask whether the first is better: p(yes) / (p(yes) + p(no)), the comparison of RewardDance.

    Attributes:
        vlm: The model that is asked.
        task: Instruction, criteria, whether to reason before the verdict.
        min_mass: Smallest p(yes) + p(no) at which an answer counts as one, in [0, 1].
    """

    vlm: Vlm
    task: Task = Task()
    min_mass: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.min_mass <= 1:
            raise RewardError(f"yes_token: min_mass is a probability, got {self.min_mass}")

    def __str__(self) -> str:
        """Return the name, and whose answer it is."""
        return f"YesToken of {self.vlm}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are empty or too long."""
        for prompt in prompts:
            check_prompt(prompt)

    def waits(self) -> bool:
        """Return whether the model that is asked does."""
        return self.vlm.waits()

    def load(self, *, device: torch.device) -> _YesComparer:
        """Load the model that is asked."""
        return _YesComparer(self, self.vlm.load(device=device))


@dataclass(frozen=True)
class _YesComparer:
    judge: YesToken
    reader: Reader

    def __call__(self, *, first: Media, second: Media, prompts: Sequence[str]) -> Tensor:
        """Compare row by row; see `Comparer`."""
        task = self.judge.task
        questions = task.between(asked_of(first, prompts), clips_of(second))
        verdicts = self.reader.verdicts(questions, reasoning=task.reasoning)
        return verdicts.log_odds.sigmoid().masked_fill(~(verdicts.mass >= self.judge.min_mass), torch.nan)
