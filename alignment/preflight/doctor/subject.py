"""What the doctor examines: a loaded run, and how its gradient is taken without leaving a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch, Experience, Pairs, Samples, Transitions
from alignment.errors import ConfigError
from alignment.objectives.base import Loss
from alignment.policy.policy import Policy
from alignment.training.loop import Trainer, microbatches, rows_per_unit
from reward_models.base import Media, RewardModel, Rewards
from samplers import Conductor
from samplers.dynamics.base import Dynamics
from samplers.windows.base import Window

ROWS = 4
"""Rows that the laws of gradients look at; a law that holds for four holds for four hundred."""
PICTURES = 8
"""Pictures that the laws of rewards look at."""
PAIR = 2
"""Pictures of one prompt among them: a group, to a reward that compares."""
SHIFT = 0.05
"""Size of a perturbation, in root mean squares of the weight (or absolute, where the weight is zero)."""

Outcome = Literal["pass", "warning", "FAIL", "skipped"]
T = TypeVar("T")


class NotApplicable(Exception):
    """A law that says nothing about this run, or cannot be looked at; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What one law came to.

    Attributes:
        outcome: Whether it holds. A warning does not fail the run; a skipped law was not looked at.
        value: The measured number; None where there is none.
        bound: What the number should be, in words.
        says: What was measured.
        cause: The likely cause and what to do, where the law does not hold.
        law: The law, in a few words: the name of the function that looked.
        seconds: How long it took.
    """

    outcome: Outcome
    value: float | None = None
    bound: str = ""
    says: str = ""
    cause: str = ""
    law: str = ""
    seconds: float = 0.0


def at_most(value: float, limit: float, says: str, cause: str) -> Finding:
    """Return the finding of a number that may not be above `limit`; NaN is above everything."""
    outcome = "pass" if value <= limit else "FAIL"
    return Finding(outcome, value, "0" if limit == 0 else f"<= {limit:.2g}", says, cause if outcome == "FAIL" else "")


def more_than(value: float, limit: float, says: str, cause: str) -> Finding:
    """Return the finding of a number that must be above `limit`; NaN is not."""
    outcome = "pass" if value > limit else "FAIL"
    return Finding(outcome, value, f"> {limit:.2g}", says, cause if outcome == "FAIL" else "")


@dataclass(frozen=True)
class Subject:
    """A loaded run, and what several laws look at, made when first asked for.

    Attributes:
        trainer: The run as training holds it.
        resolved: Its config as YAML.
    """

    trainer: Trainer
    resolved: str

    @property
    def policy(self) -> Policy:
        """What is trained."""
        return self.trainer.policy

    @property
    def ctx(self) -> Context:
        """The surroundings of the first step."""
        return self.trainer.context(0)

    @property
    def window(self) -> Window:
        """The source's window.

        Raises:
            NotApplicable: If it has none.
        """
        return _there(self.trainer.run.source.window, "chosen")

    @property
    def dynamics(self) -> Dynamics:
        """The source's rule of stochastic steps.

        Raises:
            NotApplicable: If it has none.
        """
        return _there(self.trainer.run.source.dynamics, "stochastic")

    @property
    def single(self) -> bool:
        """Whether the denoiser computes in float32."""
        spec = self.trainer.run.policy
        return spec.autocast is None and spec.dtype == "float32"

    @property
    def exact(self) -> bool:
        """Whether rollout and the pass with gradient compute the same sums in float32 on the same weights."""
        lora = self.trainer.run.policy.lora
        return self.single and not (lora is not None and lora.merge)

    @functools.cached_property
    def _stepped(self) -> list[Experience[Batch]]:
        return []

    def look_at_a_step(self) -> Experience[Batch]:
        """Make the first step's experience; the laws about its rows wait for this."""
        if not self._stepped:
            self._stepped.append(self.trainer.experience(self.ctx))
        return self._stepped[0]

    @property
    def experience(self) -> Experience[Batch]:
        """The first step's experience.

        Raises:
            NotApplicable: If it could not be made, which a finding of its own says.
        """
        if not self._stepped:
            raise NotApplicable("there is no experience to look at")
        return self._stepped[0]

    def moved(self) -> AbstractContextManager[None]:
        """Return the context in which every trained weight is moved, each time to the same place.

        A fresh adapter adds nothing, so what is wrong with adapters shows only there.
        """
        return perturbed(self.policy, self.ctx.draw.generator("doctor shift"))

    @property
    def rows(self) -> Batch:
        """The first rows of the first pipeline call; whole groups of them where those are learned from as a whole."""
        batch = self.experience.batch
        unit = rows_per_unit(self.trainer.run.objective, batch)
        size = max(ROWS - ROWS % unit, unit)
        return batch[(batch.chunk == batch.chunk[0]).nonzero().flatten()[:size]].to(self.policy.device)

    @property
    def credited(self) -> Samples | Pairs | Transitions:
        """Those rows with credit drawn at random: laws of gradients do not depend on what the reward says.

        Raises:
            NotApplicable: If the rows carry no credit.
        """
        rows = self.rows
        if not isinstance(rows, Samples | Pairs | Transitions):
            raise NotApplicable(f"{type(rows).__name__} carries no credit")
        generator = self.ctx.draw.generator("doctor credit")
        credit = torch.randn(rows.advantage.shape, generator=generator).to(rows.advantage)
        return replace(rows, advantage=credit)

    @property
    def transitions(self) -> Transitions:
        """Those rows, where they are transitions.

        Raises:
            NotApplicable: If they are not.
        """
        rows = self.rows
        if not isinstance(rows, Transitions):
            raise NotApplicable("no transitions: this objective learns from clean samples")
        return rows

    @functools.cached_property
    def start(self) -> Tensor:
        """The gradient of `credited` at the start, flat."""
        return gradient(self.trainer, self.credited)

    @functools.cached_property
    def pictures(self) -> tuple[Media, tuple[str, ...]]:
        """A few pictures of the policy as it is, `PAIR` a prompt, and their prompts."""
        texts = self.trainer.prompts.texts
        prompts = tuple(texts[i // PAIR % len(texts)] for i in range(PICTURES))
        return self.policy.generate(prompts, torch.arange(PICTURES), {}), prompts

    @property
    def reward(self) -> RewardModel:
        """The source's reward.

        Raises:
            NotApplicable: If it has none.
        """
        reward = self.trainer.run.source.reward
        if reward is None:
            raise NotApplicable("nothing is scored: this source learns from samples of a file")
        return reward

    def score(self, rows: slice = slice(None)) -> Rewards:
        """Return the reward's answer on some of `pictures`."""
        scorer, group = self.ctx.world.scorer(self.reward), torch.arange(PICTURES) // PAIR
        media, prompts = self.pictures
        return scorer(media=media[rows], prompts=prompts[rows], group=group[rows])

    def latents(self) -> Tensor:
        """Return the final latents of one picture, as rollouts compute them."""
        conductor = Conductor()
        self.policy.call(conductor, self.trainer.prompts.texts[:1], torch.zeros(1, dtype=torch.int64), pixels=False)
        assert conductor.final is not None
        return conductor.final.float()


def exchanged(whole: T, part: object, other: object) -> T:
    """Return a source or an objective with another part in place of one of its own, whatever that field is called.

    Raises:
        ConfigError: If no field holds it.
    """
    held = [field.name for field in fields(whole) if vars(whole)[field.name] is part]  # type: ignore[arg-type]
    if not held:
        raise ConfigError(f"{type(whole).__name__} has no field that holds its {type(part).__name__}, to exchange it")
    return replace(whole, **{held[0]: other})  # type: ignore[type-var]  # every kind is a dataclass


@contextmanager
def preserved(policy: Policy) -> Iterator[None]:
    """Let the trained weights and their copies be changed, and put the very same ones back afterwards."""
    live = {name: p.data for name, p in policy.trainable.items()}
    copies = policy.snapshots
    for p in policy.trainable.values():
        p.data = p.data.clone()
    policy.weights.snapshots = {name: {key: z.clone() for key, z in copy.items()} for name, copy in copies.items()}
    try:
        yield
    finally:
        for name, p in policy.trainable.items():
            p.data, p.grad = live[name], None
        policy.weights.snapshots = copies


@contextmanager
def perturbed(policy: Policy, generator: torch.Generator) -> Iterator[None]:
    """Move every trained weight at random by about a twentieth of its size, for a while."""
    with preserved(policy):
        for p in policy.trainable.values():
            size = p.detach().square().mean().sqrt().item() or 1.0
            p.data.add_(torch.randn(p.shape, generator=generator).to(p.device), alpha=SHIFT * size)
        yield


def gradient(trainer: Trainer, batch: Batch, microbatch: int | None = None) -> Tensor:
    """Return the gradient of the objective's mean over the rows of `batch`, flat, float32, on the CPU.

    A weight that gets none counts as zero. The policy is left without gradients.

    Args:
        trainer: The run.
        batch: Rows, of any number of pipeline calls.
        microbatch: Rows in one backward pass; null takes the run's own.
    """
    parameters = list(trainer.policy.trainable.values())
    _each_loss(trainer, batch, microbatch, lambda loss: (loss.per_row.sum() / len(batch)).backward())
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return torch.cat([g.flatten().float().cpu() for g in found])


def _there(fact: T | None, what: str) -> T:
    """Return a fact of a source that it has.

    Raises:
        NotApplicable: If it has none, and so no step that is `what`.
    """
    if fact is None:
        raise NotApplicable(f"no step is {what}: this source samples by the pipeline's own scheduler")
    return fact


def mean_loss(trainer: Trainer, batch: Batch) -> float:
    """Return the objective's mean over the rows of `batch`."""
    pieces: list[Tensor] = []
    _each_loss(trainer, batch, None, lambda loss: pieces.append(loss.per_row.detach().double().sum()))
    return torch.stack(pieces).sum().item() / len(batch)


def _each_loss(trainer: Trainer, batch: Batch, microbatch: int | None, learn: Callable[[Loss], None]) -> None:
    ctx, size = trainer.context(0), microbatch or trainer.run.batch.rows
    for rows in microbatches(batch, torch.arange(len(batch)), size, rows_per_unit(trainer.run.objective, batch)):
        trainer.run.objective(ctx, batch[rows].to(trainer.policy.device), learn)


def group_std(experience: Experience[Batch]) -> Tensor:
    """Return the standard deviation of the reward within each group, float64, over its scored samples; 0 below two."""
    # Rows of a batch may be fewer than samples, or more; samples come group by group in any case.
    count = len(experience.batch.group.unique())
    found = torch.zeros(count, dtype=torch.float64)
    value = experience.rewards.value.double()
    for i, scored in enumerate(value.view(count, len(value) // count)):
        scores = scored[~scored.isnan()]
        # Equal scores have a spread of exactly zero, which their mean's rounding would hide.
        if len(scores) > 1 and scores.max() > scores.min():
            found[i] = scores.std()
    return found
