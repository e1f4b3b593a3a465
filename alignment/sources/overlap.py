"""Scoring during sampling, where it pays: the samples of one pipeline call are scored during the next call."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import nullcontext
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.errors import FieldError
from alignment.sources.credited import Stopwatch, join, score
from reward_models.base import Media, RewardModel, Rewards

Overlap = bool | Literal["always"]
"""Whether to score during sampling; true: only if something other than these cores scores."""


def beside(reward: RewardModel, device: torch.device, overlap: Overlap) -> bool:
    """Return whether samples are scored in a thread beside the one that samples: where something else does the work.

    On a CPU a second thread that computes brings a second team of OpenMP threads; there are then more threads than
    cores, all of them sleep at every barrier, and the network takes twice as long for the rest of the program.
    """
    return overlap == "always" or (overlap and (reward.waits() or device.type != "cpu"))


def check_stale(stale: int, overlap: Overlap) -> None:
    """Refuse to sample ahead of scores that are not waited for.

    Raises:
        FieldError: Naming the field.
    """
    if stale and not overlap:
        raise FieldError(
            "stale", "with overlap: false nothing is sampled while scores come in; use overlap: true, or stale: 0"
        )


class Scoring:
    """Scores samples in the order they are added: in this thread, or in one thread beside the one that samples.

    There is one such thread, so that all it is asked, for this step or the next, is answered in the order of asking. It
    has no team of OpenMP threads: what it computes itself it computes alone, so that scores may differ from those of
    the other thread by rounding.

    The stopwatch measures two times: `scoring`, all of it, and `reward`, the part that the step waited for.
    """

    def __init__(self, ctx: Context, reward: RewardModel, watch: Stopwatch, *, overlap: Overlap) -> None:
        self._ctx, self._reward, self._watch = ctx, reward, watch
        ctx.world.ready(reward)  # loaded before there is a second thread
        self._helper = ctx.world.helper if beside(reward, ctx.world.device, overlap) else None
        self._answers: list[Future[Rewards]] = []

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for answer in self._answers:
            answer.cancel()

    def add(self, media: Media, prompts: tuple[str, ...], group: Tensor) -> None:
        """Have samples scored: whole groups, with one text and one group id per sample.

        Raises:
            RewardError: If scoring these or earlier samples failed, so that no more are sampled in vain.
        """
        if self._helper is not None:
            for answer in self._answers:
                if answer.done():
                    answer.result()
            self._answers.append(self._helper.submit(self._score, media, prompts, group))
            return
        answer: Future[Rewards] = Future()
        with self._watch.time("reward"):
            answer.set_result(self._score(media, prompts, group))
        self._answers.append(answer)

    def rewards(self) -> Rewards:
        """Wait for the scores, and return them in the order samples were added."""
        with self._watch.time("reward"):
            return join([answer.result() for answer in self._answers])

    def _score(self, media: Media, prompts: tuple[str, ...], group: Tensor) -> Rewards:
        device = self._ctx.world.device
        # Each thread has its own current device and its own say about gradients.
        here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with self._watch.time("scoring"), here, torch.no_grad():
            return score(self._ctx, self._reward, media, prompts, group)
