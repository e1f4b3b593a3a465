"""Scoring during sampling, where it pays: the samples of one pipeline call are scored during the next call."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from alignment.context import Context
from alignment.sources.credited import Stopwatch, join, score
from reward_models.base import Media, RewardModel, Rewards

Overlap = bool | Literal["always"]
"""Whether to score during sampling; true: only if something other than these cores scores."""


class Scoring:
    """Scores samples in the order they are added: in this thread, or in one thread beside the one that samples.

    Beside it only where another process or a GPU does the work. On a CPU a second thread that computes brings a second
    team of OpenMP threads; there are then more threads than cores, all of them sleep at every barrier, and the network
    takes twice as long for the rest of the program. The thread has no such team: what it computes itself it computes
    alone, so that scores may differ from those of the other thread by rounding.

    The stopwatch measures two times: `scoring`, all of it, and `reward`, the part that the step waited for.
    """

    def __init__(self, ctx: Context, reward: RewardModel, watch: Stopwatch, *, overlap: Overlap) -> None:
        self._ctx, self._reward, self._watch = ctx, reward, watch
        ctx.world.ready(reward)  # loaded before there is a second thread
        elsewhere = reward.waits() or ctx.world.device.type != "cpu"
        beside = overlap == "always" or (overlap and elsewhere)
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) if beside else None
        self._answers: list[Future[Rewards]] = []

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def add(self, media: Media, prompts: tuple[str, ...], group: Tensor) -> None:
        """Have samples scored: whole groups, with one text and one group id per sample.

        Raises:
            RewardError: If scoring these or earlier samples failed, so that no more are sampled in vain.
        """
        if self._pool is not None:
            for answer in self._answers:
                if answer.done():
                    answer.result()
            self._answers.append(self._pool.submit(self._score, media, prompts, group))
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
