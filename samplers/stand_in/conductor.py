"""What one pipeline call does, round by round."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from samplers.dynamics.base import Dynamics, take
from samplers.dynamics.ode import ODE
from samplers.errors import SchedulerError
from samplers.kernels.gaussian import gaussian_sample
from samplers.multistep import Solver
from samplers.paths.grid import Grid, patched
from samplers.stand_in.loop_layout import LoopLayout
from samplers.step import Step


@dataclass(frozen=True)
class Native:
    """Hand back what the pipeline's own scheduler returns, bit for bit.

    A scheduler that remembers earlier steps would remember rounds that were not its own; among those it takes the ODE
    step of first order at the same times.
    """


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
class Again:
    """In a replay, run the networks again as they ran when this was sampled, and learn nothing from their outputs.

    The state that follows is a constant, as it is to a policy gradient.

    Attributes:
        state: The state that was drawn here, or null for the pipeline's own.
        graph: Whether the networks' outputs carry a graph: needed where a later round depends on them in another way
            than by the state, such as a cache or a moving average.
    """

    state: Tensor | None = None
    graph: bool = False


@dataclass(frozen=True)
class Visit:
    """Teacher forcing: hand the model output, with its graph, to `receive`, then hand back `state`.

    Attributes:
        expected: The state this visit was recorded at; another one is an error, never a silent replay.
        receive: Called with the model output.
        state: The state for the next round, or null for the one that came in.
        tolerance: How far the state may differ, as a share of its largest number: 0, unless networks computed the state
            again with another number of rows.
    """

    expected: Tensor
    receive: Callable[[Tensor], None]
    state: Tensor | None = None
    tolerance: float = 0.0


Round = Native | Act | Solve | Look | Skip | Again | Visit


class ReplayMismatch(SchedulerError):
    """A replayed round met another state than the recorded one."""


@dataclass(frozen=True)
class Recorded:
    """One stochastic step as it was taken: states and model output in float32, and the grid it was a step of."""

    x: Tensor
    model_output: Tensor
    x_next: Tensor
    step: Step
    grid: Grid

    @classmethod
    def cat(cls, rows: Sequence[Recorded]) -> Recorded:
        """Return the step that these rows took side by side."""
        x, v, x_next = zip(*((row.x, row.model_output, row.x_next) for row in rows), strict=True)
        return cls(torch.cat(x), torch.cat(v), torch.cat(x_next), Step.cat([row.step for row in rows]), rows[0].grid)

    def to(self, device: torch.device) -> Recorded:
        """Return it on `device`."""
        x, v, x_next = (state.to(device) for state in (self.x, self.model_output, self.x_next))
        return Recorded(x, v, x_next, self.step.to(device), self.grid)


@dataclass(frozen=True)
class Stepped:
    """One call of a scheduler's step.

    Attributes:
        stream: Which of the pipeline's schedulers was stepped: 0, or the number of a copy.
        index: Its step index; null where the times are not its own.
        x: The state that came in.
        v: The model output, as far as it is used.
        native: What the scheduler itself hands back.
        grid: Returns the stream's grid; an error where its scheduler has none.
        offered: Time steps its scheduler offers.
        remembers: Whether the native result depends on earlier steps.
    """

    stream: int
    index: int | None
    x: Tensor
    v: Tensor
    native: Tensor
    grid: Callable[[], Grid]
    offered: int = 0
    remembers: bool = False

    def of(self, rows: int) -> Stepped:
        """Return it as a step of `rows` samples, each of several rows of the pipeline's."""
        x, v, native = (z.unflatten(0, (rows, -1)) for z in (self.x, self.v, self.native))
        return replace(self, x=x, v=v, native=native)


def _alike(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if tolerance == 0 or found.shape != expected.shape or not expected.numel():
        return torch.equal(found, expected)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _unlike(found: Tensor, expected: Tensor) -> str:
    """Return in what a state differs from the one that was recorded."""
    kind = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
    if found.shape != expected.shape:
        return f"it is {kind}, where {list(expected.shape)} was recorded"
    apart = (found.float() - expected).abs()
    rows = apart.flatten(1).amax(dim=1).nonzero().flatten().tolist()
    return (
        f"{len(rows)} of {len(found)} rows differ by up to {apart.max().item():.3g}, in numbers of up to "
        f"{expected.abs().max().item():.3g}, {kind}"
    )


@dataclass
class Conductor:
    """What one pipeline call does, round by round, and what it recorded.

    A round opens when a network is called after a step, or when a scheduler is stepped at another index than before.

    Attributes:
        script: What happens in each round; a round beyond its end is native.
        times: Network times to offer in place of the scheduler's own, `[R]` or `[R, B]`; the native step then never
            runs, because these times are not on the grid of any scheduler.
        layout: The layout of the loop, once a call has shown it; without it each step counts as a whole round.
        rows: Samples of the call; null where a state has as many. Pipelines that step the frames of a clip as rows of
            their own have more; their states are read and returned as whole samples.
        records: The `Act` rounds.
    """

    script: Sequence[Round] = ()
    times: Tensor | None = None
    layout: LoopLayout | None = None
    rows: int | None = None
    records: dict[int, Recorded] = field(default_factory=dict)
    _calls: list[list[int]] = field(default_factory=list)
    _here: dict[int, tuple[Stepped, Tensor]] = field(default_factory=dict)
    _states: dict[int, Tensor] = field(default_factory=dict)
    _solvers: dict[tuple[int, int], Solver] = field(default_factory=dict)
    _noise: Tensor | None = None
    _copies: int = 0
    _edges: tuple[int, int] = (0, 0)

    @property
    def round(self) -> int:
        """Rounds in which a step was made."""
        return len(self._calls) - (bool(self._calls) and not self._calls[-1])

    @property
    def final(self) -> Tensor | None:
        """The state handed back last."""
        return self.observed_layout().join(self._states) if self._states else None

    @property
    def skipping(self) -> bool:
        """Whether the denoiser need not run in this round."""
        return isinstance(self.action(self.round), Skip)

    @property
    def graphless(self) -> bool:
        """Whether nothing is learned from the outputs of networks in this round, so that they need no graph."""
        action = self.action(self.round)
        return isinstance(action, Skip) or (isinstance(action, Again) and not action.graph)

    def action(self, index: int) -> Round:
        """Return what happens in round `index`."""
        return self.script[index] if index < len(self.script) else Native()

    def observed_layout(self) -> LoopLayout:
        """Return the layout of the pipeline's loop, as this call shows it."""
        if self.layout is not None:
            return self.layout
        shapes = {stream: state.shape[1:] for stream, state in self._states.items()}
        calls = tuple(tuple(streams) for streams in self._calls if streams)
        first, offered = self._edges
        return LoopLayout(calls, shapes, first, max(offered - first - len(calls), 0))

    def copied(self) -> int:
        """Return the number of a stream whose scheduler has just been copied."""
        self._copies += 1
        return self._copies

    def open(self) -> None:
        """Open the next round, unless one is open in which no step was made yet."""
        if not self._calls or self._calls[-1]:
            self._calls.append([])
            self._here, self._noise = {}, None

    def take_over(self, rows: Sequence[Conductor]) -> None:
        """Join the results of single-row conductors, as if one call had run all rows."""
        first = rows[0]
        assert all(row.round == first.round for row in rows)
        self._calls, self._edges = first._calls, first._edges
        self._states = {stream: torch.cat([row._states[stream] for row in rows]) for stream in first._states}
        self.records = {k: Recorded.cat([row.records[k] for row in rows]) for k in first.records}

    # ---- a step ----------------------------------------------------------------------------------------------------

    def advance(self, call: Stepped) -> Tensor:
        """Return the state that follows, in the dtype of the native one."""
        earlier = self._here.get(call.stream)
        if not self._calls or (earlier and (call.index is None or earlier[0].index != call.index)):
            self.open()
        if not self._states:
            self._edges = call.index or 0, call.offered
        k, action = len(self._calls) - 1, self.action(len(self._calls) - 1)
        if isinstance(action, Act | Look):  # some pipelines write into their states in place
            call = replace(call, x=call.x.clone())
        self._calls[k].append(call.stream)
        to_come = self._to_come(k)
        if call.stream in to_come:  # only a question: what follows is answered by a later step of this round
            return call.native
        if self.rows and len(call.x) % self.rows:
            raise ReplayMismatch(f"round {k} steps {len(call.x)} rows for {self.rows} samples")
        sample = call if self.rows in (None, len(call.x)) else call.of(self.rows)
        state = self._next(action, k, sample)
        self._here[call.stream] = sample, state
        self._states[call.stream] = state
        if not to_come:
            self._close(action, k)
        return state if sample is call else state.flatten(0, 1)

    def _to_come(self, k: int) -> tuple[int, ...]:
        """Return the streams that are still to be stepped in round k."""
        if self.layout is None:
            return ()
        known, made = self.layout.calls[min(k, len(self.layout.calls) - 1)], tuple(self._calls[k])
        if made != known[: len(made)]:
            raise ReplayMismatch(f"round {k} stepped the streams {made}, where the first call stepped {known}")
        return known[len(made) :]

    def _next(self, action: Round, k: int, call: Stepped) -> Tensor:
        match action:
            case Native() | Look():
                return self._native(k, call)
            case Skip(state):
                return call.x if state is None else self._piece(state, call).to(call.native, copy=True)
            case Again(state):
                return (self._native(k, call) if state is None else self._piece(state, call).to(call.native)).detach()
            case Visit(expected, _, state, tolerance):
                # States of one's own making arrive in the pipeline's dtype.
                wanted = self._piece(expected, call).to(call.x.dtype).float()
                if not _alike(call.x.detach().float(), wanted, tolerance):
                    raise ReplayMismatch(
                        f"round {k} met another state than the one recorded: in stream {call.stream}, "
                        f"{_unlike(call.x.detach(), wanted)}"
                    )
                return call.x if state is None else self._piece(state, call).to(call.native, copy=True)
            case Solve(solver, to):
                own = self._solvers.setdefault((id(solver), call.stream), copy.deepcopy(solver))
                return own.step(self._grid(k, call), k, to, call.x, call.v).to(call.native.dtype)
            case Act(dynamics, noise):
                step = take(dynamics, self._grid(k, call), k, k + 1).to(call.x.device)
                return gaussian_sample(call.x, call.v, self._noise_of(noise, call), step, call.native.dtype)

    def _native(self, k: int, call: Stepped) -> Tensor:
        if call.remembers and not self._all_native:
            return (
                take(ODE(), self._grid(k, call), k, k + 1).to(call.x.device).mean(call.x, call.v).to(call.native.dtype)
            )
        return call.native

    @functools.cached_property
    def _all_native(self) -> bool:
        return all(isinstance(action, Native) for action in self.script)

    def _close(self, action: Round, k: int) -> None:
        """Finish round k, now that all its streams have moved."""
        match action:
            case Visit(receive=receive):
                receive(self._joined(lambda call, _: call.v))
            case Look(receive):
                receive(self._joint(lambda call, _: call.x), self._joined(lambda call, _: call.v), self._joint_grid(k))
            case Act(dynamics, _):
                x, v = self._joint(lambda call, _: call.x), self._joined(lambda call, _: call.v)
                x_next, grid = self._joint(lambda _, state: state), self._joint_grid(k)
                step = take(dynamics, grid, k, k + 1).to(x.device)
                self.records[k] = Recorded(x.float(), v.float(), x_next.float().clone(), step, grid)
            case _:
                pass

    # ---- states of several streams ---------------------------------------------------------------------------------

    def _piece(self, state: Tensor, call: Stepped) -> Tensor:
        return state if self.layout is None else self.layout.piece(state, call.stream)

    def _joined(self, of: Callable[[Stepped, Tensor], Tensor]) -> Tensor:
        return self.observed_layout().join({stream: of(*made) for stream, made in self._here.items()})

    def _joint(self, of: Callable[[Stepped, Tensor], Tensor]) -> Tensor:
        """Return the state of all streams; one that does not move in this round is where it was left."""
        moved = {stream: of(*made) for stream, made in self._here.items()}
        return self.observed_layout().join({**self._states, **moved})

    def _noise_of(self, noise: Callable[[Tensor], Tensor], call: Stepped) -> Tensor:
        if self.layout is None or self.layout.single:
            return noise(call.x)
        if self._noise is None:
            numbers = sum(shape.numel() for shape in self.layout.shapes.values())
            self._noise = noise(call.x.new_zeros(()).expand(len(call.x), numbers))
        return self.layout.piece(self._noise, call.stream)

    def _grid(self, k: int, call: Stepped) -> Grid:
        """Return the stream's grid, its steps counted in rounds."""
        return call.grid().later((call.index or 0) - k)

    def _joint_grid(self, k: int) -> Grid:
        layout = self.observed_layout()
        grids = {stream: self._grid(k, call) for stream, (call, _) in self._here.items()}
        lead = next(iter(grids.values()))
        if layout.single or (len(grids) == len(layout.shapes) and all(g.at(k) == lead.at(k) for g in grids.values())):
            return lead
        return patched(lead, [(layout.mask(stream), grid) for stream, grid in grids.items()])
