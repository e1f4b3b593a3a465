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
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from samplers.conductor import Conductor, Stepped
from samplers.grid import Grid
from samplers.schedules import answering_clean, bounded, clips, grid_of_tokens, read_grid, remembers, used_output


class _StandIn:
    """Placed before the pipeline's own scheduler class; see `stand_in`."""

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

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """Return what the network sees; states visited at times of our own are in its own scale already."""
        own_times = self._conductor is not None and self._conductor.times is not None
        return sample if own_times or self._native_scaling is None else self._native_scaling(self, sample, timestep)

    def _index_of(self, t: Tensor | float) -> int:
        """Return the step index of time `t`; a call count would be wrong where a pipeline skips its first times."""
        step_index = self.__dict__.get("_step_index")
        if step_index is not None:
            return step_index - 1
        same = (self.timesteps == torch.as_tensor(t).flatten()[0]).nonzero().flatten().tolist()
        if len(same) != 1:
            raise ValueError(f"time {t} occurs {len(same)} times among the scheduler's time steps")
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
            x, v = given["sample"], used_output(self, given)
            state = conductor.advance(Stepped(self._stream, None, x, v, x, self._grid))
            return SimpleNamespace(prev_sample=state) if given.get("return_dict", True) else (state,) * self._outputs
        out = self._native_step(self, *args, **named)
        if isinstance(out, tuple):
            self.__dict__["_outputs"] = len(out)
            return (conductor.advance(self._stepped(given, out[0])), *out[1:])
        out = copy.copy(out)
        out["prev_sample"] = conductor.advance(self._stepped(given, out.prev_sample))
        return out

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


def stand_in(base: object) -> Any:
    """Return a stand-in for the scheduler `base`: an instance of a new subclass of its class, with its state.

    `stand_in(base).conduct(conductor)` makes it follow a conductor; without one it is the native scheduler.
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
