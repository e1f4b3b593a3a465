"""The scheduler stand-in: it takes the place of a pipeline's scheduler and conducts any diffusers pipeline, unmodified.

Every diffusers pipeline calls `scheduler.set_timesteps`, reads `scheduler.timesteps`, and for each of them runs its
denoiser and calls `scheduler.step(model_output, t, sample)`. The stand-in is a subclass, made at run time, of the
pipeline's own scheduler class, so that isinstance checks, configuration and signatures stay native. It lets the native
step run (its bookkeeping and extra outputs are the pipeline's business) and replaces the state it hands back. What it
hands back is decided by a `Conductor`, round by round.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from samplers.errors import SchedulerError
from samplers.paths.grid import Grid
from samplers.paths.path import Path, read_path
from samplers.paths.schedules import answering_clean, bounded, clips, grid_of_tokens, read_grid, remembers, used_output
from samplers.stand_in.conductor import Conductor, Stepped
from samplers.step import expand

NEARBY = 2.0**-10
"""How far a step at a time of one's own goes, as a share of its sigma."""


class _Answer(dict[str, Any]):
    """What a step hands back, read by attribute, by name or by place, as the outputs of diffusers are."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return what there is."""
        return tuple(value for value in self.values() if value is not None)


class _StandIn:
    """Placed before the pipeline's own scheduler class; see `stand_in_for`."""

    _conductor: Conductor | None = None
    _stream: int = 0
    _read: Grid | None = None
    _remembers: bool = False
    _clips: bool = False
    _outputs: int = 1
    _native_step: Callable[..., Any]
    _native_scaling: Callable[..., Tensor] | None
    _signature: inspect.Signature

    def conduct(self, conductor: Conductor | None) -> None:
        """Follow `conductor` from the next call on; None restores the native scheduler."""
        self.__dict__["_conductor"] = conductor

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        """Return the scheduler of a further stream, which follows the same conductor."""
        new = type(self).__new__(type(self))
        state = {name: value for name, value in vars(self).items() if name != "_conductor"}
        new.__dict__.update(copy.deepcopy(state, memo), _conductor=self._conductor)
        if self._conductor is not None:
            new.__dict__["_stream"] = self._conductor.copied()
        return new

    @property
    def timesteps(self) -> Tensor:
        """The times offered to the pipeline."""
        if self._conductor is not None and self._conductor.times is not None:
            return self._conductor.times
        return self.__dict__["_own_timesteps"]

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self.__dict__["_own_timesteps"] = value
        self.__dict__["_read"] = None

    @property
    def sigmas(self) -> Any:
        """The noise of each time that is offered, and of the end: some pipelines look there in place of the times."""
        if self._conductor is not None and self._conductor.times is not None:
            _, sigma = self._path.marginal(self._path.time(self._conductor.times))
            # The last step arrives close by: some pipelines leave out one that goes nowhere, or tell the network where.
            return torch.cat([sigma, sigma[-1:] * (1 - NEARBY)]).float()
        try:
            return self.__dict__["sigmas"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no sigmas") from None

    @sigmas.setter
    def sigmas(self, value: Tensor) -> None:
        self.__dict__["sigmas"] = value

    @functools.cached_property
    def _path(self) -> Path:
        return read_path(self)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """Return what the network sees."""
        if self._conductor is not None and self._conductor.times is not None:
            assert timestep is not None
            scale = self._path.input_scale(_times_of(timestep, sample, self._path))
            return sample * expand(scale.to(sample.dtype), sample)
        return sample if self._native_scaling is None else self._native_scaling(self, sample, timestep)

    def _index_of(self, t: Tensor | float) -> int:
        """Return the step index of time `t`; a call count would be wrong where a pipeline skips its first times."""
        step_index = self.__dict__.get("_step_index")
        if step_index is not None:
            return step_index - 1
        same = (self.timesteps == torch.as_tensor(t).flatten()[0]).nonzero().flatten().tolist()
        if len(same) != 1:
            raise SchedulerError(f"time {t} occurs {len(same)} times among the scheduler's time steps")
        return same[0]

    def _grid(self) -> Grid:
        if self._read is None:
            self.__dict__["_read"] = read_grid(self, self.timesteps)
        assert self._read is not None
        return self._read

    def _conducted_step(self, *args: object, **named: object) -> object:
        conductor = self._conductor
        if conductor is None:
            return self._native_step(self, *args, **named)
        bound = self._signature.bind(self, *args, **named)
        bound.apply_defaults()
        given = bound.arguments
        if conductor.times is not None:
            state, clean = self._step_of_our_own(conductor, given)
            if given.get("return_dict", True):
                return _Answer(prev_sample=state, pred_original_sample=clean)
            return state, *[clean] * (self._outputs - 1)
        out = self._native_step(self, *args, **named)
        self.__dict__["_outputs"] = len(out)
        if isinstance(out, tuple):
            return (conductor.advance(self._stepped(given, out[0])), *out[1:])
        out = copy.copy(out)
        out["prev_sample"] = conductor.advance(self._stepped(given, out.prev_sample))
        return out

    def _step_of_our_own(self, conductor: Conductor, given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return the next state, and the clean prediction if it is asked for, where the time is on nobody's grid.

        No native step runs. A pipeline that hands over the clean prediction itself is understood to have that answer of
        the network which gives it.
        """
        x, v, clean = given["sample"], used_output(self, given), given.get("pred_original_sample")
        if clean is not None or self._outputs > 1:
            cx, cv = (expand(z.float(), x) for z in self._path.linear(_times_of(given["timestep"], x, self._path)))
            v = v if clean is None else (clean - cx * x) / cv
            clean = cx * x + cv * v
        state = conductor.advance(Stepped(self._stream, None, x, v, x, self._grid))
        if "_step_index" in vars(self):  # which some pipelines count back
            self.__dict__["_step_index"] = (self.__dict__["_step_index"] or 0) + 1
        return state, clean

    def _stepped(self, given: dict[str, Any], native: Tensor) -> Stepped:
        """Return what a step was about, once the native one has run."""
        index, x, v, grid = self._index_of(given["timestep"]), given["sample"], used_output(self, given), self._grid
        clean, tokens = given.get("pred_original_sample"), given.get("per_token_timesteps")
        if clean is not None:
            v, grid = clean, lambda: answering_clean(self._grid())
        elif tokens is not None:
            grid = lambda: grid_of_tokens(self, self._grid(), index, tokens, x)  # noqa: E731
        elif self._clips:
            v = bounded(self, self._grid(), index, x, v)
        return Stepped(self._stream, index, x, v, native, grid, len(self.timesteps), self._remembers)


def _times_of(step: Tensor | float, x: Tensor, path: Path) -> Tensor:
    """Return t of each row of `x`, `[n]` float64, from the time step that a pipeline passes for them."""
    return path.time(torch.as_tensor(step, device=x.device).flatten().expand(len(x)).as_subclass(Tensor))


def stand_in_for(base: object) -> Any:
    """Return a stand-in for the scheduler `base`: an instance of a new subclass of its class, with its state.

    `stand_in_for(base).conduct(conductor)` makes it follow a conductor; without one it is the native scheduler.
    """
    cls: Any = type(base)
    native_step = cls.step

    def step(self: _StandIn, *args: object, **named: object) -> object:
        return self._conducted_step(*args, **named)  # pyright: ignore[reportPrivateUsage]

    signature = inspect.signature(native_step)
    step.__signature__ = signature  # type: ignore[attr-defined]  # pipelines look for `generator`, `eta` here
    body = {
        "step": step,
        "_native_step": staticmethod(native_step),
        "_native_scaling": staticmethod(cls.scale_model_input) if hasattr(cls, "scale_model_input") else None,
        "_signature": signature,
        "_remembers": remembers(base),
        "_clips": clips(base),
        "__doc__": cls.__doc__,
    }
    made = type("StandIn" + cls.__name__, (_StandIn, cls), body)
    new = made.__new__(made)
    state = copy.deepcopy(vars(base))
    state["_own_timesteps"] = state.pop("timesteps", None)
    new.__dict__.update(state)
    return new
