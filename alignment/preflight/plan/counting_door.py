"""A pipeline without weights whose calls are counted: what each round of its loop costs, and how often it runs.

The pipeline's networks compute on meta tensors (`blueprint`). After one call at full size, which tells what each round
of the denoising loop costs, a call only walks through its rounds, with latents of five numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from alignment.data.pixels import as_clips
from alignment.errors import PipelineError, PipelineRefused
from alignment.policy.door import PipelineDoor
from alignment.policy.networks.caches.base import FeatureCache
from alignment.policy.networks.loading import loop_networks
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.networks.weights import Weights
from alignment.policy.pipeline_call import calling_pipeline, cause
from alignment.preflight.plan import blueprint
from alignment.preflight.plan import meter as plan_meter
from alignment.preflight.plan.counts import Around, Called, Event
from alignment.preflight.plan.meter import AsOnGPU, Cost, Meter
from alignment.preflight.plan.pretended import Pretended
from alignment.training.runtime.divided import Divided
from samplers import Conductor, Grid, Routes, read_grid
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


class CountingDoor:
    """A door behind which a call only walks through its rounds, once a look at full size has told what each costs.

    Attributes:
        pipe: The pipeline, without weights.
        device: Where its own tensors are: the CPU.
        scheduler: The stand-in that is conducted.
        stubs: Whether a round whose answer nobody reads goes without the networks, which it always does here.
        networks: Every network of the pipeline by component name.
        events: What was counted.
        phase: What the next events belong to.
        calls: Every call of the pipeline.
        count: Rounds of a call.
        latent: Shape of a row's latents.
        frames: Frames of a row, once decoded.
        encoding: Cost of a picture that is encoded for the first time.
        before: Cost of what every call does before its denoising loop.
        after: Cost of what it does after it: decoding.
    """

    count: int
    latent: torch.Size
    frames: int
    encoding: Cost
    before: Around
    after: Around

    def __init__(self, pipe: Any, spec: PolicySpec, weights: Weights) -> None:
        self._precision, self._asked = spec.precision, spec.call.get("num_inference_steps")
        self._seen = Observed(loop_networks(pipe), CPU, self._precision)
        self._real = PipelineDoor(pipe, self._seen)
        self.pipe, self.device, self.scheduler, self.stubs = pipe, CPU, self._real.scheduler, True
        self.networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        self._weights = weights
        self._team = weights.layout.team if isinstance(weights.layout, Divided) else None
        self._costs: dict[tuple[object, ...], Cost] = {}
        self.forget()

    def forget(self) -> None:
        """Count from zero."""
        self.events: list[Event] = []
        self.calls: list[Called] = []
        self.phase = "rollout"

    def look(self, given: Callable[[], dict[str, Any]], seeds: Tensor) -> tuple[Cost, Cost]:
        """Return what a call at full size costs before its first and after its last round.

        Args:
            given: Makes the arguments of the call, which costs something where pictures are read.
            seeds: `[n]` keys of the rows.

        Raises:
            PipelineError: If the pipeline cannot be run without weights.
        """
        meter, laps, conductor = Meter(_weights(self.networks.values())), [], Conductor()
        self._seen.lap, self._seen.measure = lambda: laps.append(meter.lap()), self._first
        self._seen.rounds.clear()
        try:
            with torch.no_grad(), AsOnGPU(self._precision), meter:
                pixels = as_clips(self._real.conduct(conductor, given(), seeds))
                self._seen.lap()
        except PipelineRefused as error:
            raise self._unplannable(error) from error
        if conductor.final is None:
            raise PipelineError(f"{type(self.pipe).__name__} never stepped its scheduler: it cannot be conducted")
        if not conductor.observed_layout().in_step:
            name = type(self.pipe).__name__
            raise PipelineError(f"{name} cannot be planned: it denoises its streams one after the other in this call")
        self.count, self.latent, self.frames = conductor.round, conductor.final.shape[1:], pixels.shape[1]
        return laps[0], laps[-1]

    def _first(self, key: tuple[str, int], run: Callable[[], Any]) -> Any:
        """Make the first call of its kind; what it costs is what a round of this call alone will."""
        cost, out = plan_meter.forward(run, _weights([self.networks[key[0]]]), self._precision)
        self._costs[(key,), self._switched_off, False] = self._with_received(cost)
        return out

    def _with_received(self, cost: Cost) -> Cost:
        """Return a cost with what came from other processes since this was called."""
        return replace(cost, received=self._team.take()) if isinstance(self._team, Pretended) else cost

    @property
    def _switched_off(self) -> bool:
        return any(layer.disable_adapters for layer in self._weights.adapters)

    def conduct(self, conductor: Conductor, given: dict[str, Any], seeds: Tensor) -> Tensor:
        """Walk through the rounds of a call as `conductor` says, and count where the denoiser would run."""
        rows, x = len(seeds), torch.zeros(len(seeds), *TOY)
        own_times = conductor.times is not None
        for k in range(self._rounds(given) if conductor.times is None else len(conductor.times)):
            conductor.open()
            v = torch.zeros_like(x)
            if not conductor.skipping:
                self._add(min(k, self.count - 1), rows)
                v.requires_grad_(torch.is_grad_enabled())
            x = conductor.advance(Stepped(0, None if own_times else k, x, v, x, lambda: self._grid, self.count))
        self.calls.append(Called(self.phase, rows, decodes=given["output_type"] != "latent"))
        return x if given["output_type"] == "latent" else torch.zeros(rows, 3, 1, 1)

    def cached(self, cache: FeatureCache | None, rounds: int) -> AbstractContextManager[None]:
        """Return a context that changes nothing: what a cache leaves out depends on what the networks answer."""
        return nullcontext()

    def aside(self) -> CountingDoor:
        """Return this door: rounds of calls with other arguments are counted as its own, but for how many there are."""
        return self

    def _rounds(self, given: dict[str, Any]) -> int:
        asked, own = given.get("num_inference_steps"), self._asked
        return self.count if not isinstance(asked, int) or not isinstance(own, int) else self.count * asked // own

    @functools.cached_property
    def _grid(self) -> Grid:
        return read_grid(self.scheduler, self.scheduler.timesteps)

    def _add(self, k: int, rows: int) -> None:
        keys = [key for key in self._seen.rounds[k] if self._seen.in_loop(key[0]) or self.count == 1]
        grad = torch.is_grad_enabled()
        signature = (tuple(keys), self._switched_off, grad)
        if signature not in self._costs:
            self._costs[signature] = self._with_received(self._measure(keys, grad))
        networks = tuple(name for name, _ in keys if name in self._weights.experts)
        self.events.append(Event(self.phase, rows, self._costs[signature].times(rows), grad, networks))

    def _measure(self, keys: Sequence[tuple[str, int]], grad: bool) -> Cost:
        """Return what these calls of networks cost, for one row."""

        def run() -> list[Any]:
            return [self._seen.calls[key]() for key in keys]

        weights = _weights([self.networks[name] for name in dict(keys)])
        try:
            with calling_pipeline(self.pipe):
                if not grad:
                    return plan_meter.forward(run, weights, self._precision)[0]
                cost, reached = plan_meter.backward(run, weights, self._weights.trainable.values(), self._precision)
        except PipelineRefused as error:
            raise self._unplannable(error) from error
        if not reached:
            component = next(iter(self._weights.experts))
            raise PipelineError(f"no trained weight of {component} is used in a step that is to be trained")
        return cost

    def _unplannable(self, error: PipelineRefused) -> PipelineError:
        return PipelineError(
            f"{type(self.pipe).__name__} cannot be planned, which runs its networks without the values of their "
            f"inputs: {cause(error)}"
        )


def _weights(networks: Iterable[nn.Module]) -> list[Tensor]:
    return [z for network in networks for z in (*network.parameters(), *network.buffers())]
