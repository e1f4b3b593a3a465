"""A step of a run without its weights: the run's own source, objective and loop, on a policy that counts.

Whatever decides what a step costs (windows, branches, shared prefixes, solvers, frozen copies, updates, microbatches,
guidance) is decided by the code that trains. Two things differ. The pipeline's networks compute on meta
tensors (`blueprint`); and after one call at full size, which tells what each round of the denoising loop costs, a
call only walks through its rounds, with latents of five numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from alignment.config.run import Run
from alignment.credit.structures.base import Allocator, Structure
from alignment.data.batches import Batch, inputs_of
from alignment.data.pixels import as_clips
from alignment.data.prompts import Prompts
from alignment.errors import ConfigError, PipelineError, PipelineRefused, VisalignError
from alignment.objectives.base import Loss
from alignment.policy.call_forms import Form, brings_pictures, first_accepted
from alignment.policy.networks.loading import loop_networks
from alignment.policy.pipeline_call import asking, cause
from alignment.policy.policy import Policy
from alignment.preflight.plan import blueprint
from alignment.preflight.plan import meter as plan_meter
from alignment.preflight.plan.counts import Around, Called, Event, StepCounts
from alignment.preflight.plan.meter import AsOnGPU, Cost, Meter
from alignment.training.loop import Trainer
from alignment.training.runtime import Runtime
from alignment.world import World
from reward_models.base import Loaded, Media, RewardError, RewardModel, Rewards
from samplers import Conductor, Grid, LoopLayout, Routes, read_grid
from samplers.stand_in.conductor import Stepped

CPU = torch.device("cpu")
TOY = (1, 1, 5)
"""Shape of the latents that walk through a rehearsed call; no other tensor of a batch ends in it."""


@dataclass
class Observed(Routes):
    """Routes that remember which network calls each round makes, and can make them again.

    Attributes:
        rounds: (network, nth call of the round) by round.
        calls: How to make such a call.
        measure: Makes a call and returns what came out; told which.
        lap: Called before and after each call.
    """

    rounds: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    calls: dict[tuple[str, int], Callable[[], Any]] = field(default_factory=dict)
    measure: Callable[[tuple[str, int], Callable[[], Any]], Any] = lambda key, run: run()
    lap: Callable[[], None] = lambda: None

    def answer(self, name: str, nth: int, conductor: Conductor, rows: int, run: Callable[[], Any]) -> Any:
        """Return zeros of the answer's shape; each network call of a round runs in the first one only."""
        key = (name, nth)
        self.lap()
        self.rounds.setdefault(conductor.round, []).append(key)
        self.rounds_seen[name].add(conductor.round)
        if key not in self.calls:
            self.calls[key], out = run, self.measure(key, run)
            self.remember(key, rows, tree_map_only(Tensor, self._on_cpu, out))
        self.lap()
        return self.blank(key, rows)

    def _on_cpu(self, z: Tensor) -> Tensor:
        return blueprint.zeros(z.float() if z.dtype == self.autocast else z)


class RehearsedPolicy(Policy):
    """A policy over a pipeline without weights; its calls are counted.

    Attributes:
        networks: Every network of the pipeline by component name.
        adapters: Layers of the denoiser that carry one.
        events: What was counted.
        phase: What the next events belong to.
        calls: Every call of the pipeline.
        latent: Shape of a row's latents.
        frames: Frames of a row, once decoded.
        encoding: Cost of a picture that is encoded for the first time.
        before: Cost of what every call does before its denoising loop.
        after: Cost of what it does after it: decoding.
        brought: What prompts brought since `forget`.
    """

    def __init__(self, run: Run) -> None:
        spec = replace(run.policy, compile=False, embedding_cache=None)
        super().__init__(spec, device=CPU, seed=0, pipe=blueprint.draw(spec))
        self.networks = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        self._precision = None if spec.autocast is None else torch.bfloat16
        self.adapters, self.latents = self._adapters, blueprint.BlankLatents(self, TOY)
        self._seen = Observed(loop_networks(self.pipe), CPU, self._precision)
        self._costs: dict[tuple[object, ...], Cost] = {}
        self.forget()

    def forget(self) -> None:
        """Count from zero."""
        self.events: list[Event] = []
        self.calls: list[Called] = []
        self.brought: set[tuple[object, ...]] = set()
        self.phase = "rollout"

    def observe(self, prompt: str, *, mixed: bool) -> None:
        """Run the pipeline at full size, with one row and with two; its networks run in the first round only.

        Args:
            prompt: The longest there is: rows of a call are as long as the longest of them.
            mixed: Whether prompts bring different pictures, so that each row has its own encoded.

        Raises:
            PipelineError: If it cannot be run without weights, or does not take the call's arguments.
        """
        pictured = brings_pictures((prompt,), self._arguments)

        def look(form: Form, rows: int) -> tuple[Cost, Cost]:
            self.form = form
            return self._look((prompt,) * rows)

        one = two = fresh = first_accepted(functools.partial(look, rows=1))
        if self.encodings.misses:  # what it encoded is remembered, and is no part of another look
            one = two = look(self.form, 1)
        self.encoding = Cost(fresh[0].flops - one[0].flops, fresh[0].bytes)
        together = (Form.SHARED, Form.ALIKE, Form.REPEATED) if pictured and not mixed else (Form.ROWS,)
        # Which one is right shows in values; here the first that the pipeline takes.
        for form in () if self.form.single else together:
            try:
                two = look(form, 2)
                break
            except PipelineError:
                self.form = Form.ALONE
        self.before, self.after = (Around(*costs) for costs in zip(one, two, strict=True))
        self.row_times = True  # what rows of their own cost does not depend on it
        # A step of the toy moves one stream, whatever the pipeline has.
        self._layout = LoopLayout(((0,),) * self.rounds, {0: torch.Size(TOY)})

    def _look(self, prompts: tuple[str, ...]) -> tuple[Cost, Cost]:
        """Return what a call of these rows costs before its first and after its last round."""
        meter, laps, conductor = Meter(_weights(self.networks.values())), [], Conductor()
        self._seen.lap, self._seen.measure = lambda: laps.append(meter.lap()), self._first
        self._seen.rounds.clear()
        seeds = torch.zeros(len(prompts), dtype=torch.int64)
        try:
            with torch.no_grad(), AsOnGPU(self._precision), meter:
                given = self._given(prompts, seeds, "pt")
                pixels = as_clips(super()._conduct(conductor, given, self._seen, seeds))
                self._seen.lap()
        except PipelineRefused as error:
            raise self._unplannable(error) from error
        if conductor.final is None:
            raise PipelineError(f"{type(self.pipe).__name__} never stepped its scheduler: it cannot be conducted")
        if not conductor.observed_layout().in_step:
            name = type(self.pipe).__name__
            raise PipelineError(f"{name} cannot be planned: it denoises its streams one after the other in this call")
        self.rounds, self.latent, self.frames = conductor.round, conductor.final.shape[1:], pixels.shape[1]
        return laps[0], laps[-1]

    def _first(self, key: tuple[str, int], run: Callable[[], Any]) -> Any:
        """Make the first call of its kind; what it costs is what a round of this call alone will."""
        cost, out = plan_meter.forward(run, _weights([self.networks[key[0]]]), self._precision)
        self._costs[(key,), self._switched_off, False] = cost
        return out

    @property
    def _switched_off(self) -> bool:
        return any(layer.disable_adapters for layer in self._adapters)

    def _run(self, conductor: Conductor, prompts: Sequence[str], seeds: Tensor, *, pixels: bool) -> Tensor | None:
        self.brought.update(map(pictures_of, prompts))
        return super()._run(conductor, prompts, seeds, pixels=pixels)

    def _conduct(self, conductor: Conductor, given: dict[str, Any], routes: Routes, seeds: Tensor) -> Tensor:
        """Walk through the rounds of a call as `conductor` says, and count where the denoiser would run."""
        rows, x = len(seeds), torch.zeros(len(seeds), *TOY)
        own_times = conductor.times is not None
        for k in range(self.rounds if conductor.times is None else len(conductor.times)):
            conductor.open()
            v = torch.zeros_like(x)
            if not conductor.skipping:
                self._count(min(k, self.rounds - 1), rows)
                v.requires_grad_(torch.is_grad_enabled())
            x = conductor.advance(Stepped(0, None if own_times else k, x, v, x, lambda: self._grid, self.rounds))
        self.calls.append(Called(self.phase, rows, decodes=given["output_type"] != "latent"))
        return x if given["output_type"] == "latent" else torch.zeros(rows, 3, 1, 1)

    @functools.cached_property
    def _grid(self) -> Grid:
        return read_grid(self._stand_in, self._stand_in.timesteps)

    def _count(self, k: int, rows: int) -> None:
        keys = [key for key in self._seen.rounds[k] if self._seen.in_loop(key[0]) or self.rounds == 1]
        grad = torch.is_grad_enabled()
        signature = (tuple(keys), self._switched_off, grad)
        if signature not in self._costs:
            self._costs[signature] = self._measure(keys, grad)
        self.events.append(Event(self.phase, rows, self._costs[signature].times(rows), grad))

    def _measure(self, keys: Sequence[tuple[str, int]], grad: bool) -> Cost:
        """Return what these calls of networks cost, for one row."""

        def run() -> list[Any]:
            return [self._seen.calls[key]() for key in keys]

        weights = _weights([self.networks[name] for name in dict(keys)])
        try:
            with asking(self.pipe):
                if not grad:
                    return plan_meter.forward(run, weights, self._precision)[0]
                cost, reached = plan_meter.backward(run, weights, self.trainable.values(), self._precision)
        except PipelineRefused as error:
            raise self._unplannable(error) from error
        if not reached:
            raise PipelineError(f"no trained weight of {self.component} is used in a step that is to be trained")
        return cost

    def _unplannable(self, error: PipelineRefused) -> PipelineError:
        return PipelineError(
            f"{type(self.pipe).__name__} cannot be planned, which runs its networks without the values of their "
            f"inputs: {cause(error)}"
        )


def _weights(networks: Iterable[nn.Module]) -> list[Tensor]:
    return [z for network in networks for z in (*network.parameters(), *network.buffers())]


def pictures_of(prompt: str) -> tuple[object, ...]:
    """Return what a prompt brings, to compare it with what another does."""
    return tuple(value for value in inputs_of(prompt).values() if not isinstance(value, str))


@dataclass(frozen=True)
class _Alone(World):
    """One process whose scorers are asked for nothing but a count, and whose credit goes everywhere."""

    scored: list[int] = field(default_factory=list)

    def scorer(self, reward: RewardModel) -> Loaded:
        return Loaded(reward, _Counting(self.scored))

    def allocator(self, structure: Structure) -> Allocator:
        return lambda pixels, grid: torch.ones(len(pixels), grid.frames, grid.height, grid.width)


@dataclass(frozen=True)
class _Counting:
    """Gives every sample a score of its own; credit is never constant."""

    scored: list[int]

    def __call__(self, *, media: Media, prompts: Sequence[str], group: Tensor | None = None) -> Rewards:
        self.scored.append(len(media))
        return Rewards(torch.arange(len(media), dtype=torch.float32))


class _Still(Runtime):
    """A runtime that takes no optimiser step."""

    def __init__(self, world: World) -> None:
        self.world = world

    def learn(self, loss: Loss, rows: int) -> None:
        loss.per_row.sum().backward()

    def update(self, learning_rate: float) -> float:
        return 0.0


class Rehearsal:
    """One process's share of a run, ready to rehearse steps.

    Attributes:
        run: The run, with this process's share of the prompts.
        policy: The policy that counts.
    """

    def __init__(self, run: Run, prompts: Prompts, processes: int) -> None:
        each, over = divmod(run.source.prompts, processes)
        if over or not each:
            raise ConfigError(
                f"source.prompts: {run.source.prompts} prompts a step do not divide over {processes} GPUs"
            )
        try:
            source: Any = replace(run.source, prompts=each)  # type: ignore[type-var]  # sources are dataclasses
        except ConfigError as error:
            raise ConfigError(f"source, with {each} of {run.source.prompts} prompts a GPU: {error}") from error
        self.run = replace(run, source=source)
        self.policy = RehearsedPolicy(run)
        self.policy.observe(max(prompts.texts, key=len), mixed=len(set(map(pictures_of, prompts.texts))) > 1)
        for name in run.copies:
            self.policy.keep(name)
        state: Any = SimpleNamespace(process_index=0, num_processes=1)
        self._world = _Alone(state, CPU)
        self._trainer = Trainer(self.run, self.policy, _Still(self._world), prompts)

    def step(self, number: int) -> StepCounts:
        """Rehearse a step.

        Raises:
            ConfigError: If the run's source or objective needs what only a loaded pipeline has.
        """
        policy, trainer = self.policy, self._trainer
        policy.forget()
        self._world.scored.clear()
        ctx = trainer.context(number)
        try:
            batch = trainer.experience(ctx).batch
            policy.phase = "update"
            trainer.learn(ctx, batch)
        except VisalignError:
            raise
        except (RuntimeError, ValueError, RewardError) as error:
            raise ConfigError(
                f"{type(self.run.source).__name__} with {type(self.run.objective).__name__} cannot be rehearsed "
                f"without weights: {error}"
            ) from error
        return StepCounts(policy.events, policy.calls, len(policy.brought), sum(self._world.scored), self._bytes(batch))

    def _bytes(self, batch: Batch) -> int:
        """Return the memory of a batch whose latents were of full size."""
        tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
        larger = self.policy.latent.numel() // torch.Size(TOY).numel()
        return sum(z.nbytes * larger if z.shape[-len(TOY) :] == TOY else z.nbytes for z in tensors)
