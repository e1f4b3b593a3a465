"""What rewards that score with one other reward share."""

from __future__ import annotations

from collections.abc import Sequence

from reward_models.base import RewardModel, Size


class AroundAnother(RewardModel):
    """A reward that gives another one's scores.

    Attributes:
        reward: What scores.
    """

    reward: RewardModel

    def __str__(self) -> str:
        """Return the name of what scores."""
        return str(self.reward)

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what the inner reward refuses."""
        self.reward.check(prompts)

    def size(self) -> Size | None:
        """Return the size of the inner reward."""
        return self.reward.size()

    def part_names(self) -> tuple[str, ...] | None:
        """Return those of the inner reward."""
        return self.reward.part_names()

    def right_or_wrong(self) -> tuple[str, ...]:
        """Return those of the inner reward."""
        return self.reward.right_or_wrong()

    def reads_prompts(self) -> bool:
        """Return whether the inner reward does."""
        return self.reward.reads_prompts()

    def waits(self) -> bool:
        """Return whether the inner reward does."""
        return self.reward.waits()
