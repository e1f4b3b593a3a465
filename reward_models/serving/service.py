"""One thread that scores the questions of many clients: those of one shape together, those that fail apart."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reward_models.base import Loaded, Media, RewardError, Rewards
from reward_models.combinators.pieces import put_together
from reward_models.errors import broken
from reward_models.foreign import out_of_memory
from reward_models.serving.wire import Limits, ParsedQuestion, Refusal


@dataclass(frozen=True)
class Outcome:
    """What came of a question.

    Attributes:
        rewards: Scores of its samples; NaN where there is none.
        errors: Why a sample has no score, one per sample; None where it has one, or where the model gave no reason.
    """

    rewards: Rewards
    errors: tuple[str | None, ...]


@dataclass(eq=False)
class _Job:
    asked: ParsedQuestion
    answer: Future[Outcome] = field(default_factory=Future)


class Service:
    """A loaded reward behind a queue.

    What a model raises, and memory that runs out, answer the question that met them. Anything else is a fault of ours
    or an interrupt: then all who wait are told, and nothing is answered any more. So it is where one call never ends
    and the service is given up.

    Attributes:
        loaded: What scores.
        rows: Most samples scored in one call.
        linger: Seconds to wait for more of them.
        queue: Questions that may wait; more are refused.
        pixels: Most pixels of questions that are scored together; one with more is scored alone.
        when_broken: Called in the end, if the thread that scores breaks down or the service is given up.
        broke_down: Whether it has broken down.
        stuck_at: Lines of code where that thread was when the service was given up; empty if it was not.
    """

    def __init__(
        self, loaded: Loaded, *, rows: int = 16, linger: float = 0.002, queue: int = 256, pixels: int = Limits.total
    ) -> None:
        self.loaded, self.rows, self.linger, self.queue, self.pixels = loaded, rows, linger, queue, pixels
        self.when_broken: Callable[[], object] = lambda: None
        self.broke_down, self.stuck_at = False, ""
        self._call_began: float | None = None
        self._scored: list[_Job] = []  # what the thread is at
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="reward", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._closing

    def ask(self, asked: ParsedQuestion) -> Future[Outcome]:
        """Have a question answered.

        Raises:
            Refusal: If too many wait, or no more are taken.
        """
        with self._changed:
            if not self.alive:
                raise Refusal(503, "stopping", "this server answers no more questions", wait=5)
            if len(self._waiting) >= self.queue:
                wait = max(1, min(30, round(self._seconds * len(self._waiting))))
                raise Refusal(429, "busy", f"{len(self._waiting)} questions are waiting", wait=wait)
            job = _Job(asked)
            self._waiting.append(job)
            self._changed.notify()
        job.answer.add_done_callback(lambda answer: self._forget(job))
        return job.answer

    @property
    def call_seconds(self) -> float:
        """Seconds since the present call of the model began; 0 between calls."""
        began = self._call_began
        return 0.0 if began is None else time.monotonic() - began

    def give_up(self) -> None:
        """Take no more and refuse all who wait: the present call of the model is not expected to end.

        Its thread is left alone: nothing can end it but the end of the process.
        """
        frame = sys._current_frames().get(self._thread.ident or 0)  # pyright: ignore[reportPrivateUsage]  # documented
        where = traceback.extract_stack(frame)[-3:] if frame is not None else []
        self.stuck_at = " > ".join(f"{at.filename}:{at.lineno} {at.name}" for at in where) or "an unknown place"
        self._refuse_all("the scorer is stuck")

    def _forget(self, job: _Job) -> None:
        """Let go of the pictures of a question that nobody waits for any more."""
        with self._changed:
            if job.answer.cancelled() and job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Answer what waits, and take no more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if not self.stuck_at:
            self._thread.join()

    def _work(self) -> None:
        with ExitStack() as at_the_end:
            at_the_end.callback(self._break_down)
            while jobs := self._next():
                start = time.monotonic()
                self._answer(jobs)
                self._seconds += 0.1 * ((time.monotonic() - start) / len(jobs) - self._seconds)
            at_the_end.pop_all()

    def _break_down(self) -> None:
        self.broke_down = True
        self._refuse_all("the scorer has broken down")

    def _refuse_all(self, why: str) -> None:
        """Take no more, and refuse all who wait: nobody waits for an answer that does not come."""
        with self._changed:
            self._closing = True
            left = [job for job in self._waiting if job.answer.set_running_or_notify_cancel()]
            left += [job for job in self._scored if not job.answer.done()]
            self._waiting.clear()
            for job in left:
                job.answer.set_exception(Refusal(503, "stopping", why, wait=5))
        self.when_broken()

    def _next(self) -> list[_Job]:
        """Return questions to be scored together, when there are some; none when it is time to leave."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self.linger and not self._closing:
                    self._changed.wait_for(lambda: self._closing or self._rows_waiting() >= self.rows, self.linger)
                jobs = self._take()
                if jobs or (self._closing and not self._waiting):
                    return jobs

    def _take(self) -> list[_Job]:
        """Take the first question and those after it that fit with it; its client may have left."""
        jobs: list[_Job] = []
        rows = pixels = 0
        while self._waiting:
            asked = self._waiting[0].asked
            size = asked.pixels.numel() // 3
            if jobs and (
                rows + len(asked) > self.rows or pixels + size > self.pixels or asked.shape != jobs[0].asked.shape
            ):
                break
            job = self._waiting.popleft()
            if job.answer.set_running_or_notify_cancel():
                jobs.append(job)
                rows, pixels = rows + len(asked), pixels + size
        return jobs

    def _rows_waiting(self) -> int:
        return sum(len(job.asked) for job in self._waiting)

    def _answer(self, jobs: list[_Job]) -> None:
        self._scored = jobs
        try:
            verdicts = self._score([job.asked for job in jobs])
            with self._changed:
                for job, verdict in zip(jobs, verdicts, strict=True):
                    if not job.answer.done():  # by giving up
                        job.answer.set_result(verdict)
        finally:
            with self._changed:
                for job in jobs:
                    if not job.answer.done():
                        job.answer.set_exception(Refusal(500, "broken", "the scorer has broken down"))

    def _score(self, questions: Sequence[ParsedQuestion]) -> list[Outcome]:
        if len(questions) == 1:
            return [self._score_apart(questions[0])]
        try:
            rewards = self._call(questions)
        except RewardError:
            return [self._score_apart(asked) for asked in questions]
        ends = torch.tensor([len(asked) for asked in questions]).cumsum(0).tolist()
        return [
            Outcome(rewards[end - len(asked) : end], (None,) * len(asked))
            for asked, end in zip(questions, ends, strict=True)
        ]

    def _score_apart(self, asked: ParsedQuestion) -> Outcome:
        """Score one question in calls of at most `rows`; where one fails, sample by sample or group by group."""
        everything = torch.arange(len(asked))
        smallest = list(everything.split(1))
        pieces = list(everything.split(self.rows))
        if self.loaded.model.scope == "group" and asked.group is not None:
            pieces = smallest = [(asked.group == one).nonzero()[:, 0] for one in asked.group.unique()]
        found: list[tuple[Tensor, Rewards | str]] = []
        for rows in pieces:
            answer = self._try(asked, rows)
            if isinstance(answer, str) and pieces is not smallest:
                found += [(row, self._try(asked, row)) for row in rows.split(1)]
            else:
                found.append((rows, answer))
        return _verdict(found, len(asked))

    def _try(self, asked: ParsedQuestion, rows: Tensor) -> Rewards | str:
        try:
            return self._call([asked], rows)
        except RewardError as error:
            return str(error)

    def _call(self, questions: Sequence[ParsedQuestion], rows: Tensor | None = None) -> Rewards:
        """Score questions together, or some rows of one.

        Raises:
            RewardError: If the model fails, or there is no memory for their pixels.
        """
        try:
            with torch.no_grad():
                parts = [asked if rows is None else asked[rows] for asked in questions]
                prompts = [text for asked in parts for text in asked.prompts]
                media, group = _joined([asked.media for asked in parts]), _apart([asked.group for asked in parts])
                self._call_began = time.monotonic()
                rewards = self.loaded(media=media, prompts=prompts, group=group)
            return Rewards(rewards.value.cpu(), {name: part.cpu() for name, part in rewards.parts.items()})
        except RewardError:
            raise
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise broken(self.loaded.model, error) from error
        finally:
            self._call_began = None


def _verdict(found: Sequence[tuple[Tensor, Rewards | str]], count: int) -> Outcome:
    errors: list[str | None] = [None] * count
    scored: list[tuple[Tensor, Rewards]] = []
    for rows, answer in found:
        if isinstance(answer, Rewards):
            scored.append((rows, answer))
            continue
        for row in rows.tolist():
            errors[row] = answer
    return Outcome(put_together(scored, count, torch.device("cpu")), tuple(errors))


def _joined(medias: Sequence[Media]) -> Media:
    if len(medias) == 1:
        return medias[0]
    sources = [media.source for media in medias]
    source = _joined([one for one in sources if one is not None]) if sources[0] is not None else None
    return Media(torch.cat([media.pixels for media in medias]), medias[0].fps, source)


def _apart(groups: Sequence[Tensor | None]) -> Tensor | None:
    """Return group ids of several questions, renumbered so that no two questions share one."""
    given = [group for group in groups if group is not None]
    if not given:
        return None
    ids, first = [], 0
    for group in given:
        own = group.unique(return_inverse=True)[1]
        ids.append(own + first)
        first += int(own.max()) + 1
    return torch.cat(ids)
