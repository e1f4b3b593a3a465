"""Group-sampled trajectories from any pipeline, with shared prefixes run once per prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from samplers.dynamics.base import Dynamics, take
from samplers.errors import SamplingError, without_noise
from samplers.multistep import SecondOrder, strides
from samplers.paths.grid import Grid
from samplers.stand_in.conductor import Act, Again, Conductor, Look, Native, Recorded, Round, Skip, Solve
from samplers.step import Step, mean_std
from samplers.windows.base import Choice

Noise = Callable[[int, torch.Size], Tensor]
"""noise(round, shape of a sample) -> `[P G, *shape]`, each row from its own stream."""


class Call(Protocol):
    """Runs the pipeline once."""

    def __call__(self, conductor: Conductor, prompts: tuple[str, ...], seeds: Tensor, *, pixels: bool) -> Tensor | None:
        """Denoise one row per prompt, with initial noise keyed by `seeds` `[n]`.

        Returns:
            Pixels `[n, F, 3, H, W]` in [0, 1], or None where they are not asked for.
        """
        ...


@dataclass(frozen=True)
class RolloutPlan:
    """One rollout of P prompts, G samples each.

    Attributes:
        prompts: The P texts.
        seeds: `[P]` when a group shares its initial noise, else `[P G]`, group by group.
        group_size: G.
        rounds: Denoising steps of a call.
        choice: Which steps are stochastic and trained.
        dynamics: Rule of the stochastic steps.
        noise: Their noise.
        tail: Most denoiser calls for the steps after the window, by a second-order solver, or, as a float, their share
            of those steps; null takes every step, natively.
        share_prefix: Run the common prefix of a group once per prompt. The result is the same, unless the pipeline
            keeps something from round to round; turn it off there, or to measure the gain.
    """

    prompts: tuple[str, ...]
    seeds: Tensor
    group_size: int
    rounds: int
    choice: Choice
    dynamics: Dynamics
    noise: Noise
    tail: int | float | None = None
    share_prefix: bool = True

    @property
    def shared_noise(self) -> bool:
        """Whether a group starts from one initial noise."""
        return len(self.seeds) == len(self.prompts)

    @property
    def first(self) -> int | None:
        """The first stochastic step."""
        return self.choice.stochastic[0] if self.choice.stochastic else None

    @property
    def parts(self) -> bool:
        """Whether samples leave one state of their group, which is found in a call of its own."""
        return self.first is not None and self.shared_noise and (self.share_prefix or self.choice.branch)

    @property
    def window_end(self) -> int:
        """The step after the last stochastic one."""
        return max(self.choice.stochastic, default=-1) + 1

    @property
    def tail_strides(self) -> list[tuple[int, int]]:
        """Where the denoiser runs after the window, and where the step from there arrives."""
        left = self.rounds - self.window_end
        if self.tail is None:
            return [(k, k + 1) for k in range(self.window_end, self.rounds)]
        calls = self.tail if isinstance(self.tail, int) else max(1, round(self.tail * left))
        return strides(self.window_end, self.rounds, min(calls, left))

    def visits(self, *, single: bool) -> int:
        """Return in how many rounds of its calls the denoiser runs.

        Args:
            single: Whether the pipeline is called once per row.
        """
        common = self.first + 1 if self.parts and self.first is not None else 0
        own = self.window_end - (common if self.share_prefix else 0) + len(self.tail_strides)
        rows = (len(self.prompts), len(self.repeated)) if single else (1, 1)
        return common * rows[0] + own * rows[1]

    @property
    def repeated(self) -> tuple[str, ...]:
        """One text per sample."""
        return tuple(text for text in self.prompts for _ in range(self.group_size))


@dataclass(frozen=True)
class Trajectory:
    """What a rollout keeps: the end, and the trained steps.

    Attributes:
        x0: `[P G, *latent]` final latents, float32.
        pixels: `[P G, F, 3, H, W]` in [0, 1].
        records: The trained steps. In branch mode states are `[P, ...]` and next states `[P, G, ...]`; else both have
            one row per sample, and next states have an action axis of one, `[P G, 1, ...]`.
        mean_std: Mean std of the steps that calls like this one may train; 0 where none is trained.
    """

    x0: Tensor
    pixels: Tensor
    records: Mapping[int, Recorded]
    mean_std: float

    def to(self, device: torch.device) -> Trajectory:
        """Return it on `device`."""
        records = {k: record.to(device) for k, record in self.records.items()}
        return replace(self, x0=self.x0.to(device), pixels=self.pixels.to(device), records=records)


def sample(call: Call, plan: RolloutPlan) -> Trajectory:
    """Roll out `plan`.

    Raises:
        SamplingError: If the dynamics is deterministic, or a trained step has no noise.
    """
    if plan.choice.stochastic and not plan.dynamics.stochastic:
        raise SamplingError(f"{type(plan.dynamics).__name__} is deterministic here: transitions need noise")
    records: dict[int, Recorded] = {}
    first = plan.first
    seeds = plan.seeds.repeat_interleave(plan.group_size) if plan.shared_noise else plan.seeds
    parted = None
    if first is not None and plan.parts:
        records[first] = parted = _part(call, plan, first)
    conductor = Conductor(_script(plan, first, parted))
    pixels = call(conductor, plan.repeated, seeds, pixels=True)
    assert pixels is not None
    assert conductor.final is not None
    records |= {k: _with_action_axis(record) for k, record in conductor.records.items()}
    if first is not None and parted is not None and not plan.choice.branch:
        records[first] = _one_row_a_sample(parted, plan.group_size)
    trained = {k: records[k] for k in plan.choice.trained}
    for k, record in trained.items():
        if not record.step.random:
            raise without_noise(plan.dynamics, k)
    return Trajectory(conductor.final.float(), pixels, trained, _mean_std(plan, trained))


def _mean_std(plan: RolloutPlan, trained: Mapping[int, Recorded]) -> float:
    """Return the mean std of the steps that calls like this one come to train; 0 where none is trained.

    Where elements have times of their own, a grid is that of its round alone, and the mean that of the steps taken.
    """
    grid = next((record.grid for record in trained.values()), None)
    if grid is None:
        return 0.0
    if grid.patches:
        return mean_std(record.step for record in trained.values())
    return mean_std(take(plan.dynamics, grid, k, k + 1) for k in plan.choice.eligible or trained)


def observe_prefix(
    call: Call, prompts: tuple[str, ...], seeds: Tensor, k: int, rounds: int
) -> tuple[Tensor, Tensor, Grid]:
    """Run the ODE to round `k` and return (state, model output, grid) there; later rounds do not run the denoiser."""
    seen: list[tuple[Tensor, Tensor, Grid]] = []
    look = Look(lambda x, v, grid: seen.append((x, v, grid)))
    conductor = Conductor([*([Native()] * k), look, *([Skip()] * (rounds - k - 1))])
    call(conductor, prompts, seeds, pixels=False)
    return seen[0]


def _part(call: Call, plan: RolloutPlan, k: int) -> Recorded:
    """Return the step at which groups part: states `[P, ...]`, next states `[P, G, ...]`."""
    x, v, grid = observe_prefix(call, plan.prompts, plan.seeds, k, plan.rounds)
    step = take(plan.dynamics, grid, k, k + 1).to(x.device).for_actions()
    noise = plan.noise(k, x.shape[1:]).to(x.device).unflatten(0, (len(plan.prompts), plan.group_size))
    x_next = step.sample(x[:, None], v[:, None], noise).to(x.dtype)
    return Recorded(x.float(), v.float(), x_next.float(), step, grid)


def _script(plan: RolloutPlan, first: int | None, parted: Recorded | None) -> list[Round]:
    """Return what happens in each round of the call with one row per sample."""
    stochastic = set(plan.choice.stochastic)
    script: list[Round] = []
    for k in range(plan.window_end):
        if parted is not None and first is not None and k <= first:
            script.append(_common(plan, parted.x_next.flatten(0, 1) if k == first else None))
        elif k in stochastic:
            script.append(Act(plan.dynamics, _noise_of_round(plan.noise, k)))
        else:
            script.append(Native())
    if plan.tail is None:
        return [*script, *([Native()] * len(plan.tail_strides))]
    solver = SecondOrder()
    for i, j in plan.tail_strides:
        script += [Solve(solver, to=j), *([Skip()] * (j - i - 1))]
    return script


def _common(plan: RolloutPlan, state: Tensor | None) -> Round:
    """Return what a sample does in a round that its group has in common; `state` is where the group parts to."""
    return Skip(state) if plan.share_prefix else Again(state)


def _noise_of_round(noise: Noise, k: int) -> Callable[[Tensor], Tensor]:
    return lambda x: noise(k, x.shape[1:]).to(x.device)


def _with_action_axis(record: Recorded) -> Recorded:
    return replace(record, x_next=record.x_next[:, None], step=record.step.for_actions())


def _one_row_a_sample(parted: Recorded, group_size: int) -> Recorded:
    def each(z: Tensor) -> Tensor:
        return z.repeat_interleave(group_size, 0) if z.ndim and len(z) == len(parted.x) else z

    step = Step(*(each(number) for number in (parted.step.a, parted.step.b, parted.step.std)))
    x_next = parted.x_next.flatten(0, 1)[:, None]
    return Recorded(each(parted.x), each(parted.model_output), x_next, step, parted.grid)
