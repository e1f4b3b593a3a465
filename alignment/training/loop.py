"""The loop. It moves typed batches and never asks which algorithm, model, reward or backend it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from alignment.config.run import Run, Snapshots
from alignment.context import Context
from alignment.data.batches import Batch, Experience, Groups
from alignment.data.prompts import Prompts
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError
from alignment.objectives.base import Loss, Objective
from alignment.policy.networks.compiling.compilations import COMPILATIONS
from alignment.policy.policy import Policy
from alignment.sources.base import PREVIOUS, finished
from alignment.training.out_of_memory import Doing, enough_memory
from alignment.training.runtime.runtime import Runtime, learning_rate, peak_memory

AfterStep = Callable[[int, Experience[Batch], dict[str, float]], None]
"""after(step, experience, metrics): record, evaluate, save."""


class Learner(Protocol):
    """What learns from losses: a runtime."""

    def learn(self, loss: Loss, rows: int) -> None:
        """Run the backward pass of `loss`, as a share of an update over `rows` rows of all processes."""
        ...

    def follow(self, loss: Loss) -> None:
        """Run the backward pass of `loss` for nothing, because other processes run theirs."""
        ...

    def update(self, learning_rate: float) -> float:
        """Take a step, and return the norm of the gradients."""
        ...


@dataclass(frozen=True)
class Trainer:
    """A run, loaded.

    Attributes:
        run: Its description.
        policy: What is trained.
        runtime: Where.
        prompts: On what.
        held_out: On what it is measured; None where nothing is held out.
        contents: Hashes of what the run is made from, by the config's key.
    """

    run: Run
    policy: Policy
    runtime: Runtime
    prompts: Prompts
    held_out: Prompts | None = None
    contents: Mapping[str, str] = field(default_factory=dict)

    def fit(self, first: int, after: AfterStep) -> None:
        """Train from step `first` to the last one."""
        with closing(self._experiences(first)) as experiences:
            for step in range(first, self.run.steps):
                start = time.perf_counter()
                with self.doing("sampling", step):
                    experience = next(experiences)
                sampled = time.perf_counter()
                with self.doing("learning", step):
                    self.learn(self.context(step), experience.batch)
                learned = {**experience.metrics, **self.runtime.metrics()}
                refresh(self.run, self.policy, step, learned)
                end = time.perf_counter()
                seconds = {"total": end - start, "update": end - sampled, **experience.seconds}
                after(step, experience, learned | self._metrics(step, experience, seconds))

    def _experiences(self, first: int) -> Generator[Experience[Batch], None, None]:
        """Yield the experience of every step from `first` on.

        Where the source is stale, a step is sampled before the scores of the step before are waited for. So the first
        one is of the policy before the last update, also where a run is resumed.
        """
        steps, ahead = range(first, self.run.steps), []
        if not self.run.source.stale:
            yield from (self.experience(self.context(step)) for step in steps)
            return
        try:
            with self.policy.using(PREVIOUS):
                ahead.append(self._begun(self.context(first)))
            for step in steps:
                if step + 1 in steps:
                    ahead.append(self._begun(self.context(step + 1)))
                yield finished(ahead.pop(0))
        finally:
            for halves in ahead:
                halves.close()

    @contextmanager
    def doing(self, what: Doing, step: int) -> Iterator[None]:
        """Name what this process does, for processes that wait for it and for the message when memory runs out."""
        self.runtime.world.place(f"{what}, step {step}")
        with enough_memory(self.run, what, step), self.runtime.world.explaining(what):
            yield

    def context(self, step: int) -> Context:
        """Return the context of one step."""
        return Context(step, self.policy, Draw(self.run.seed), self.runtime.world, self.run.source.reward)

    def experience(self, ctx: Context) -> Experience[Batch]:
        """Return the experience of this process's share of the step's prompts."""
        return self.run.source(ctx, self._groups(ctx))

    def _begun(self, ctx: Context) -> Generator[None, None, Experience[Batch]]:
        """Return the halves of a step's experience, the first of them done."""
        halves = self.run.source.halves(ctx, self._groups(ctx))
        next(halves)
        return halves

    def _groups(self, ctx: Context) -> Groups:
        groups = self.prompts.at(ctx.step, self.run.source.prompts, ctx.draw)
        return groups[self.runtime.world.share(len(groups))]

    def learn(self, ctx: Context, batch: Batch) -> None:
        """Take the step's updates."""
        learn(self.run, ctx, batch, self.runtime)

    def _metrics(self, step: int, experience: Experience[Batch], seconds: dict[str, float]) -> dict[str, float]:
        samples = (len(experience.prompts) or len(experience.batch)) * self.runtime.world.size
        return {
            "learning_rate": learning_rate(self.run.optimizer, step, self.run.steps),
            "ema/decay": ema_decay(self.run, step),
            "updates": float(self.run.batch.updates),
            "rows": float(len(experience.batch) * self.runtime.world.size),
            "samples_per_second": samples / seconds["total"],
            "memory/peak_bytes": float(peak_memory(self.runtime.world.device)),
            **{f"seconds/{name}": spent for name, spent in seconds.items()},
            **(COMPILATIONS.of_step(step) if self.run.policy.compile else {}),
        }


def learn(run: Run, ctx: Context, batch: Batch, learner: Learner) -> None:
    """Take the updates of a step.

    Raises:
        ConfigError: If the batch does not divide into updates, or a call holds less than a group.
    """
    unit = rows_per_unit(run.objective, batch)
    for rows, total in updates(ctx, batch, run.batch.updates, unit):
        parts = list(microbatches(batch, rows, run.batch.rows, unit))
        for k in range(ctx.world.together(len(parts))):
            if k < len(parts):
                micro = batch[parts[k]].to(ctx.policy.device)
                run.objective(ctx, micro, lambda loss, total=total: learner.learn(loss, total))
            else:
                run.objective(ctx, batch[torch.arange(unit)].to(ctx.policy.device), learner.follow)
        learner.update(learning_rate(run.optimizer, ctx.step, run.steps))


def rows_per_unit(objective: Objective[Batch], batch: Batch) -> int:
    """Return how many neighbouring rows stay together in every split: those of a group, or 1.

    Raises:
        ConfigError: If a pipeline call holds less than a group.
    """
    if not objective.whole_groups:
        return 1
    unit = len(batch) // len(batch.group.unique())
    if (batch.chunk.view(-1, unit) != batch.chunk[::unit, None]).any():
        raise ConfigError(
            f"objective: {type(objective).__name__} compares the samples of a group, but this pipeline takes one "
            "prompt per call; choose an objective that learns from each row by itself"
        )
    return unit


def updates(ctx: Context, batch: Batch, count: int, unit: int = 1) -> Iterator[tuple[Tensor, int]]:
    """Yield (this process's rows, rows on all processes) of each update.

    The split is a permutation of all rows of all processes, keyed by the step: how many processes there are does not
    show in it.

    Args:
        ctx: The step.
        batch: This process's rows.
        count: Updates.
        unit: Neighbouring rows that stay together.

    Raises:
        ConfigError: If the rows do not divide.
    """
    mine, total = len(batch) // unit, len(batch) // unit * ctx.world.size
    if total % count:
        raise ConfigError(
            f"batch.updates must divide the {'rows' if unit == 1 else 'groups'} of a step: "
            f"{total} / {count} leaves {total % count} over"
        )
    order = torch.randperm(total, generator=ctx.draw.generator("updates", ctx.step))
    for part in (order - ctx.world.rank * mine).split(total // count):
        firsts = unit * part[(part >= 0) & (part < mine)].sort().values
        yield (firsts[:, None] + torch.arange(unit)).flatten(), unit * total // count


def microbatches(batch: Batch, rows: Tensor, size: int, unit: int = 1) -> Iterator[Tensor]:
    """Yield the rows in pieces of at most `size`, none of which mixes chunks or splits a unit of rows."""
    for chunk in batch.chunk[rows].unique().tolist():
        yield from rows[batch.chunk[rows] == chunk].split(max(size - size % unit, unit))


def refresh(run: Run, policy: Policy, step: int, metrics: Mapping[str, float]) -> None:
    """Let the averaged copies follow the live weights.

    Raises:
        ConfigError: If a copy waits for a metric that the step does not have.
    """
    if "ema" in policy.snapshots:
        policy.weights.refresh("ema", ema_decay(run, step))
    if "behaviour" in policy.snapshots and behaviour_is_due(run.snapshots, step, metrics):
        policy.weights.refresh("behaviour", min(run.snapshots.behaviour, run.snapshots.behaviour_rate * (step + 1)))


def behaviour_is_due(snapshots: Snapshots, step: int, metrics: Mapping[str, float]) -> bool:
    """Return whether the behaviour copy follows after this step.

    Raises:
        ConfigError: If it waits for a metric that the step does not have.
    """
    if lacking := snapshots.above.keys() - metrics.keys():
        raise ConfigError(
            f"snapshots.above: the run has no metric {', '.join(sorted(lacking))}; step {step} has "
            f"{', '.join(sorted(metrics))}"
        )
    return (step + 1) % snapshots.every == 0 and all(metrics[name] > least for name, least in snapshots.above.items())


def ema_decay(run: Run, step: int) -> float:
    """Return the decay of the averaged weights: young averages forget faster."""
    return min(run.snapshots.ema, (1 + step) / (2 + step))
