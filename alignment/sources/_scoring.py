"""Scoring while sampling: the samples of one pipeline call are scored while the next call makes its own."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import TracebackType

import torch
from torch import Tensor

from alignment.context import Context
from alignment.sources._collect import Stopwatch, join, score
from reward_models.base import Media, RewardModel, Rewards


class Scoring:
    """Scores samples in the order they are added, in one thread beside the one that samples.

    One thread and one order, so that overlapping changes no score. The thread computes with as many threads of its own
    as the one that samples, because float sums are split up by their number.

    The stopwatch tells two things: `scoring`, what scoring took, and `reward`, what of it the step had to wait for.
    """

    def __init__(self, ctx: Context, reward: RewardModel, watch: Stopwatch, *, overlap: bool) -> None:
        self._ctx, self._reward, self._watch, self._overlap = ctx, reward, watch, overlap
        ctx.world.scorer(reward)  # loaded before there is a second thread
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(threads,))
        self._answers: list[Future[Rewards]] = []

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def add(self, media: Media, prompts: tuple[str, ...], group: Tensor) -> None:
        """Have samples scored: whole groups, with one text and one group id a sample.

        Raises:
            RewardError: If this, or scoring what was added before, has failed: no more is sampled in vain.
        """
        for answer in self._answers:
            if answer.done():
                answer.result()
        self._answers.append(self._pool.submit(self._score, media, prompts, group))
        if not self._overlap:
            self._wait()

    def rewards(self) -> Rewards:
        """Wait for the scores, and return them in the order samples were added."""
        return join(self._wait())

    def _wait(self) -> list[Rewards]:
        with self._watch.time("reward"):
            return [answer.result() for answer in self._answers]

    def _score(self, media: Media, prompts: tuple[str, ...], group: Tensor) -> Rewards:
        device = self._ctx.world.device
        # Each thread has its own current device and its own say about gradients.
        here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with self._watch.time("scoring"), here, torch.no_grad():
            return score(self._ctx, self._reward, media, prompts, group)
