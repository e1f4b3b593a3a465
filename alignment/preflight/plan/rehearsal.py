"""A step of a run without its weights: the run's own source, objective and loop, on a policy that counts.

Whatever decides what a step costs (windows, branches, shared prefixes, solvers, frozen copies, updates, microbatches,
guidance) is decided by the code that trains. Two things differ. The pipeline's networks compute on meta
tensors (`blueprint`); and after one call at full size, which tells what each round of the denoising loop costs, a
call only walks through its rounds, with latents of five numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from alignment.config.parallel import Division
from alignment.config.run import Run
from alignment.context import Context
from alignment.credit.structures.base import Allocator, Structure
from alignment.data.batches import Batch, inputs_of
from alignment.data.prompts import Prompts
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError, PipelineError, VisalignError
from alignment.objectives.base import Loss
from alignment.policy.call_forms import Form, brings_pictures, first_accepted
from alignment.policy.networks.layout import Whole
from alignment.policy.networks.loading import experts
from alignment.policy.networks.weights import Weights, bring
from alignment.policy.policy import Policy
from alignment.preflight.plan import blueprint
from alignment.preflight.plan.counting_door import CPU, TOY, CountingDoor
from alignment.preflight.plan.counts import Around, StepCounts
from alignment.preflight.plan.meter import Cost
from alignment.preflight.plan.pretended import Pretended
from alignment.training import loop
from alignment.training.runtime.divided import Divided
from alignment.training.runtime.mesh import check_steering
from alignment.world import World
from reward_models.base import Loaded, Media, RewardError, RewardModel, Rewards
from samplers import LoopLayout


def rehearsed(run: Run, context: int = 1) -> tuple[Policy, CountingDoor]:
    """Return the policy of a run, over its pipeline without weights, and the door that counts its calls.

    Args:
        run: The run.
        context: Processes that work at the same samples.

    Raises:
        ConfigError: If they cannot.
    """
    # What is folded in takes no room of its own.
    spec = replace(run.policy, compile=False, embedding_cache=None, adapters=())
    pipe = blueprint.draw(spec)
    networks = experts(pipe)
    layout = None if context == 1 else Divided(Whole(), Pretended(context), None)
    weights = Weights(networks, spec, 0, bring(spec, pipe, networks), layout)
    door = CountingDoor(pipe, spec, weights)
    policy = Policy(door, weights)
    check_steering(policy)
    policy.latents = blueprint.BlankLatents(pipe, TOY)
    return policy, door


def observe(policy: Policy, door: CountingDoor, prompt: str, *, mixed: bool) -> None:
    """Run the pipeline at full size, with one row and with two; its networks run in the first round only.

    Args:
        policy: What is told how the pipeline goes.
        door: What measures it.
        prompt: The longest there is: rows of a call are as long as the longest of them.
        mixed: Whether prompts bring different pictures, so that each row has its own encoded.

    Raises:
        PipelineError: If it cannot be run without weights, or does not take the call's arguments.
    """
    pictured = brings_pictures((prompt,), policy.arguments)

    def look(form: Form, rows: int) -> tuple[Cost, Cost]:
        policy.form = form
        seeds = torch.zeros(rows, dtype=torch.int64)
        return door.look(lambda: policy.given((prompt,) * rows, seeds, "pt"), seeds)

    one = two = fresh = first_accepted(functools.partial(look, rows=1))
    if policy.encodings.misses:  # what it encoded is remembered, and is no part of another look
        one = two = look(policy.form, 1)
    door.encoding = Cost(fresh[0].flops - one[0].flops, fresh[0].bytes)
    together = (Form.SHARED, Form.ALIKE, Form.REPEATED) if pictured and not mixed else (Form.ROWS,)
    # Which one is right shows in values; here the first that the pipeline takes.
    for form in () if policy.form.single else together:
        try:
            two = look(form, 2)
            break
        except PipelineError:
            policy.form = Form.ALONE
    door.before, door.after = (Around(*costs) for costs in zip(one, two, strict=True))
    policy.rounds, policy.row_times = door.count, True  # what rows of their own cost does not depend on their times
    # A step of the toy moves one stream, whatever the pipeline has.
    policy.layout = LoopLayout(((0,),) * door.count, {0: torch.Size(TOY)})


def pictures_of(prompt: str) -> tuple[object, ...]:
    """Return what a prompt brings, to compare it with what another does."""
    return tuple(value for value in inputs_of(prompt).values() if not isinstance(value, str))


@dataclass(frozen=True)
class _Alone(World):
    """One process whose scorers are asked for nothing but a count, and whose credit goes everywhere.

    Attributes:
        read: Parts of the reward that credit is made of: a reward that does not know its own is taken to have these.
    """

    read: tuple[str, ...] = ()
    scored: list[int] = field(default_factory=list)

    def scorer(self, reward: RewardModel) -> Loaded:
        known = reward.part_names()
        return Loaded(reward, _Counting(self.scored, self.read if known is None else known))

    def allocator(self, structure: Structure) -> Allocator:
        return lambda samples, grid: torch.ones(len(samples.media), grid.frames, grid.height, grid.width)


@dataclass(frozen=True)
class _Counting:
    """Gives every sample a score of its own, and its parts the same; credit is never constant."""

    scored: list[int]
    parts: tuple[str, ...]

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor | None = None) -> Rewards:
        self.scored.append(len(media))
        scores = torch.arange(len(media), dtype=torch.float32)
        return Rewards(scores, dict.fromkeys(self.parts, scores))


class _Still:
    """Takes backward passes, and no optimiser step."""

    def learn(self, loss: Loss, rows: int) -> None:
        loss.per_row.sum().backward()

    def follow(self, loss: Loss) -> None:
        """Do nothing: this process is alone."""

    def update(self, learning_rate: float) -> float:
        return 0.0


class Rehearsal:
    """One process's share of a run, ready to rehearse steps.

    Attributes:
        run: The run, with this process's share of the prompts.
        policy: The policy of it, over networks without weights.
        door: What counts its calls.
    """

    def __init__(self, run: Run, prompts: Prompts, division: Division = Division(1, 1)) -> None:
        each, over = divmod(run.source.prompts, division.teams)
        if over or not each:
            teams = "GPUs" if division.context == 1 else f"teams of {division.context} GPUs"
            raise ConfigError(
                f"source.prompts: {run.source.prompts} prompts per step do not divide over {division.teams} {teams}"
            )
        try:
            source: Any = replace(run.source, prompts=each)  # type: ignore[type-var]  # sources are dataclasses
        except ConfigError as error:
            raise ConfigError(f"source, with {each} of {run.source.prompts} prompts a GPU: {error}") from error
        self.run = replace(run, source=source)
        self.policy, self.door = rehearsed(run, division.context)
        mixed = len(set(map(pictures_of, prompts.texts))) > 1
        observe(self.policy, self.door, max(prompts.texts, key=len), mixed=mixed)
        for name in run.copies:
            self.policy.weights.keep(name)
        state: Any = SimpleNamespace(process_index=0, num_processes=1)
        advantage = run.source.advantage
        self._world = _Alone(state, CPU, read=() if advantage is None else advantage.reads)
        self._prompts = prompts

    def step(self, number: int) -> StepCounts:
        """Rehearse a step.

        Raises:
            ConfigError: If the run's source or objective needs what only a loaded pipeline has.
        """
        run, door, scored = self.run, self.door, self._world.scored
        door.forget()
        scored.clear()
        ctx = Context(number, self.policy, Draw(run.seed), self._world, run.source.reward)
        groups = self._prompts.at(number, run.source.prompts, ctx.draw)
        try:
            batch = run.source(ctx, groups).batch
            door.phase = "update"
            loop.learn(run, ctx, batch, _Still())
        except VisalignError:
            raise
        except (RuntimeError, ValueError, RewardError) as error:
            raise ConfigError(
                f"{type(run.source).__name__} with {type(run.objective).__name__} cannot be rehearsed "
                f"without weights: {error}"
            ) from error
        brought = set(map(pictures_of, groups.prompts))  # each is encoded once a step at most
        return StepCounts(door.events, door.calls, len(brought), sum(scored), self._bytes(batch))

    def _bytes(self, batch: Batch) -> int:
        """Return the memory of a batch whose latents were of full size."""
        tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
        larger = self.door.latent.numel() // torch.Size(TOY).numel()
        return sum(z.nbytes * larger if z.shape[-len(TOY) :] == TOY else z.nbytes for z in tensors)
