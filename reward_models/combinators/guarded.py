"""What happens when a reward fails or hangs: one error, or samples left out; never a number that is not a score."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reward_models.base import (
    Loaded,
    Media,
    RewardError,
    RewardModel,
    Rewards,
    Scope,
    load_reward,
    require_reward_model,
)
from reward_models.combinators.inner import AroundAnother
from reward_models.combinators.pieces import put_together


@dataclass(frozen=True)
class Guarded(AroundAnother):
    """Score with another reward, under a deadline and with a rule for its failures.

    With `on_failure: exclude` a batch that fails is scored again, sample by sample or group by group, and those that
    fail alone get NaN: credit leaves them out and counts them, and a run stops when there are too many. If all of them
    fail, it is an error in either case. With `error` the first failure ends the run.

    A scorer that passes the deadline cannot be stopped, only left: its thread stays until the program ends, and the
    scorer is not called again. A deadline suits rewards that wait for a server. A reward that computes on the CPU of
    this process shares it with the main thread, and both get slower.

    Attributes:
        reward: What scores.
        on_failure: "error" or "exclude".
        deadline: Seconds that one call may take; null waits for ever.
    """

    reward: RewardModel
    on_failure: Literal["error", "exclude"] = "exclude"
    deadline: float | None = None

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_reward_model(self.reward)
        if self.deadline is not None and not self.deadline > 0:
            raise RewardError(f"guarded: deadline is in seconds and more than 0, or null; got {self.deadline}")

    @property
    def scope(self) -> Scope:  # pyright: ignore[reportIncompatibleVariableOverride]  # read-only
        """The scope of the inner reward."""
        return self.reward.scope

    def load(self, *, device: torch.device) -> _GuardedScorer:
        """Load the reward."""
        return _GuardedScorer(self, load_reward(self.reward, device=device))


@dataclass
class _GuardedScorer:
    model: Guarded
    loaded: Loaded
    hangs: bool = False

    @property
    def inner(self) -> tuple[Loaded]:
        """What scores."""
        return (self.loaded,)

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor | None = None) -> Rewards:
        """Score `media`, whole or in its smallest pieces."""
        with torch.no_grad():
            try:
                return self._in_time(media, prompts, group)
            except RewardError:
                if self.model.on_failure == "error" or self.hangs:
                    raise
            return self._in_pieces(media, prompts, group)

    def _in_pieces(self, media: Media, prompts: Sequence[str], group: Tensor | None) -> Rewards:
        count = len(media)
        pieces = (
            list(torch.arange(count)) if group is None else [torch.where(group == one)[0] for one in group.unique()]
        )
        answers: list[tuple[Tensor, Rewards]] = []
        failures: list[RewardError] = []
        for rows in (piece.reshape(-1).cpu() for piece in pieces):
            texts = [prompts[int(row)] for row in rows]
            try:
                own = media[rows.to(media.pixels.device)]
                answers.append((rows, self._in_time(own, texts, None if group is None else group[rows])))
            except RewardError as error:
                if self.hangs:
                    raise
                failures.append(error)
        if not answers:
            raise failures[0]
        return put_together(answers, count, media.pixels.device)

    def _in_time(self, media: Media, prompts: Sequence[str], group: Tensor | None) -> Rewards:
        if self.model.deadline is None:
            return self.loaded(media=media, prompts=prompts, group=group)
        if self.hangs:
            raise RewardError(f"{self.model} passed its deadline before and is not asked again")
        answer: queue.Queue[Rewards | RewardError] = queue.Queue()

        def ask() -> None:
            if self.model.reward.waits():
                torch.set_num_threads(1)  # in this thread: a second team of threads would slow down the whole process
            with torch.no_grad():
                try:
                    answer.put(self.loaded(media=media, prompts=prompts, group=group))
                except RewardError as error:
                    answer.put(error)

        # A daemon, because a thread that hangs would keep the program from ending.
        asking = threading.Thread(target=ask, daemon=True, name="guarded reward")
        asking.start()
        asking.join(self.model.deadline)
        if asking.is_alive():
            self.hangs = True
            raise RewardError(
                f"{self.model} did not answer about {len(media)} samples within its deadline of "
                f"{self.model.deadline:g} seconds; look at what it waits for, or raise the deadline"
            )
        if answer.empty():
            raise RewardError(f"{self.model} broke down; what it raised is printed above")
        found = answer.get()
        if isinstance(found, RewardError):
            raise found
        return found
