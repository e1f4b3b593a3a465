"""The scheduler stand-in: it takes the place of a pipeline's scheduler and conducts any diffusers pipeline, unmodified.

Every diffusers pipeline calls `scheduler.set_timesteps`, reads `scheduler.timesteps`, and for each of them runs its
denoiser and calls `scheduler.step(model_output, t, sample)`. The stand-in is a subclass, made at run time, of the
pipeline's own scheduler class, so that isinstance checks, configuration and signatures stay native. It lets the native
step run (its bookkeeping and extra outputs are the pipeline's business) and replaces the state it hands back. What it
hands back is decided by a `Conductor`, round by round.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from samplers.dynamics.base import Dynamics
from samplers.grid import Grid, read_grid
from samplers.multistep import Solver
from samplers.step import Step


@dataclass(frozen=True)
class Native:
    """Hand back what the pipeline's own scheduler returns, bit for bit."""


@dataclass(frozen=True)
class Act:
    """Take a step of `dynamics` with `noise` and record it.

    Attributes:
        dynamics: The rule.
        noise: Returns standard normal noise for this round, shaped like the state.
    """

    dynamics: Dynamics
    noise: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solve:
    """Take a deterministic step with a solver that remembers earlier ones.

    Attributes:
        solver: The rule and its memory.
        to: The step arrives where step `to - 1` of the grid arrives.
    """

    solver: Solver
    to: int


@dataclass(frozen=True)
class Look:
    """Let `receive` see (state, model output, grid); hand back the native result."""

    receive: Callable[[Tensor, Tensor, Grid], None]


@dataclass(frozen=True)
class Skip:
    """Do not run the denoiser; hand back `state`, or the state that came in."""

    state: Tensor | None = None


@dataclass(frozen=True)
class Visit:
    """Teacher forcing: hand the model output, with its graph, to `receive`, then hand back `state`.

    Attributes:
        expected: The state this visit was recorded at; another one is an error, never a silent replay.
        receive: Called with the model output.
        state: The state for the next round, or null for the one that came in.
    """

    expected: Tensor
    receive: Callable[[Tensor], None]
    state: Tensor | None = None


Round = Native | Act | Solve | Look | Skip | Visit


class ReplayMismatch(RuntimeError):
    """A replayed round met another state than the recorded one."""


@dataclass(frozen=True)
class Recorded:
    """One stochastic step as it was taken: states and model output in float32."""

    x: Tensor
    velocity: Tensor
    x_next: Tensor
    step: Step


@dataclass
class Conductor:
    """What one pipeline call does, round by round, and what it recorded.

    Attributes:
        script: What happens in each round; a round beyond its end is native.
        times: Network times to offer in place of the scheduler's own, `[R]` or `[R, B]`; the native step then never
            runs, because these times are on nobody's grid.
        round: Rounds finished.
        records: The `Act` rounds.
        grid: The time grid, once the pipeline has set it; null when no round needs it.
        final: The state handed back last.
    """

    script: Sequence[Round] = ()
    times: Tensor | None = None
    round: int = 0
    records: dict[int, Recorded] = field(default_factory=dict)
    grid: Grid | None = None
    final: Tensor | None = None

    def action(self, index: int) -> Round:
        """Return what happens in round `index`."""
        return self.script[index] if index < len(self.script) else Native()

    @property
    def skipping(self) -> bool:
        """Whether the denoiser need not run in the round at hand."""
        return isinstance(self.action(self.round), Skip)

    def advance(self, index: int, x: Tensor, v: Tensor, native: Tensor) -> Tensor:
        """Return the state that follows round `index`, in the dtype of `native`."""
        action = self.action(index)
        self.round = index + 1
        self.final = self._next(action, index, x, v, native)
        return self.final

    def _next(self, action: Round, index: int, x: Tensor, v: Tensor, native: Tensor) -> Tensor:
        match action:
            case Native():
                return native
            case Skip(state):
                return x if state is None else state.to(native)
            case Visit(expected, receive, state):
                if not torch.equal(x.detach().float(), expected):
                    raise ReplayMismatch(f"round {index} met another state than the one recorded")
                receive(v)
                return x if state is None else state.to(native)
            case Look(receive):
                receive(x, v, self._known_grid())
                return native
            case Solve(solver, to):
                return solver.step(self._known_grid(), index, to, x, v).to(native.dtype)
            case Act(dynamics, noise):
                step = dynamics.step(self._known_grid(), index, index + 1).to(x.device)
                x_next = step.sample(x, v, noise(x)).to(native.dtype)
                self.records[index] = Recorded(x.float(), v.float(), x_next.float(), step)
                return x_next

    def _known_grid(self) -> Grid:
        if self.grid is None:
            raise ValueError("the pipeline stepped its scheduler before setting its time steps")
        return self.grid

    @property
    def needs_grid(self) -> bool:
        """Whether a round computes its own step."""
        return any(isinstance(action, Act | Solve | Look) for action in self.script)


class _StandIn:
    """Placed before the pipeline's own scheduler class; see `stand_in`."""

    _conductor: Conductor | None
    _native_step: Callable[..., Any]
    _signature: inspect.Signature

    def conduct(self, conductor: Conductor | None) -> None:
        """Follow `conductor` from the next call on; None restores the native scheduler."""
        self.__dict__["_conductor"] = conductor

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        raise NotImplementedError(
            f"the pipeline copies its {type(self).__name__.removeprefix('StandIn')} to denoise several streams; "
            "training such a pipeline is not supported yet"
        )

    @property
    def timesteps(self) -> Tensor:
        """The times offered to the pipeline."""
        conductor = self.__dict__["_conductor"]
        if conductor is not None and conductor.times is not None:
            return conductor.times
        return self.__dict__["_own_timesteps"]

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self.__dict__["_own_timesteps"] = value

    def _index_of(self, t: Tensor | float) -> int:
        """Return the round of time `t`; a call count would be wrong where a pipeline skips its first times."""
        step_index = self.__dict__.get("_step_index")
        if step_index is not None:
            return step_index - 1
        same = (self.timesteps == torch.as_tensor(t).flatten()[0]).nonzero().flatten().tolist()
        if len(same) != 1:
            raise ValueError(f"time {t} occurs {len(same)} times among the scheduler's time steps")
        return same[0]

    def _conducted_step(self, *args: object, **named: object) -> object:
        conductor = self._conductor
        if conductor is None:
            return self._native_step(self, *args, **named)
        given = self._signature.bind(self, *args, **named)
        given.apply_defaults()
        v, x, t = (given.arguments[name] for name in ("model_output", "sample", "timestep"))
        if conductor.times is not None:
            state = conductor.advance(conductor.round, x, v, x)
            return SimpleNamespace(prev_sample=state) if given.arguments.get("return_dict", True) else (state,)
        out = self._native_step(self, *args, **named)
        index = self._index_of(t)
        if conductor.grid is None and conductor.needs_grid:
            conductor.grid = read_grid(self, self.timesteps)
        if isinstance(out, tuple):
            return (conductor.advance(index, x, v, out[0]), *out[1:])
        out = copy.copy(out)
        out["prev_sample"] = conductor.advance(index, x, v, out.prev_sample)
        return out


def stand_in(base: object) -> Any:
    """Return a stand-in for the scheduler `base`: an instance of a new subclass of its class, with its state.

    `stand_in(base).conduct(conductor)` makes it follow a conductor; without one it is the native scheduler.
    """
    cls = type(base)
    native_step = cls.step  # type: ignore[attr-defined]

    def step(self: _StandIn, *args: object, **named: object) -> object:
        return self._conducted_step(*args, **named)  # pyright: ignore[reportPrivateUsage]

    signature = inspect.signature(native_step)
    step.__signature__ = signature  # type: ignore[attr-defined]  # pipelines look for `generator`, `eta` here
    body = {"step": step, "_native_step": staticmethod(native_step), "_signature": signature, "__doc__": cls.__doc__}
    made = type("StandIn" + cls.__name__, (_StandIn, cls), body)
    new = made.__new__(made)
    state = copy.deepcopy(vars(base))
    state["_own_timesteps"] = state.pop("timesteps", None)
    new.__dict__.update(state, _conductor=None)
    return new
