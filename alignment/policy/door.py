"""The way through a pipeline's own `__call__`, which a conductor uses."""

from __future__ import annotations

import functools
import inspect
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from alignment.policy.caching.at_work import cached
from alignment.policy.networks.caches.base import FeatureCache
from alignment.policy.networks.loading import experts, loop_networks, own_scheduler, trained_scheduler
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.pipeline_call import calling_pipeline, global_stream, output, same_states
from samplers import Conductor, Routes, stand_in_for
from samplers.stand_in.twins import twin


class Door(Protocol):
    """Conducts calls of a pipeline, or counts what they would cost.

    Attributes:
        pipe: The diffusers pipeline.
        device: Where everything runs.
        scheduler: The stand-in that is conducted; the forward process and the grid are read from it.
        stubs: Whether a round whose model output is not read skips the networks.
    """

    pipe: Any
    device: torch.device
    scheduler: Any
    stubs: bool

    def conduct(self, conductor: Conductor, given: dict[str, Any], seeds: Tensor) -> Tensor:
        """Call the pipeline once, as `conductor` says.

        Args:
            conductor: What happens in each round.
            given: Arguments of the pipeline's `__call__`.
            seeds: `[n]` keys of the rows.

        Returns:
            What the pipeline returns: latents or pixels, by `given["output_type"]`.
        """
        ...

    def cached(self, cache: FeatureCache | None, rounds: int) -> AbstractContextManager[None]:
        """Return a context for one call of so many rounds, in which the denoisers use a feature cache; None: none."""
        ...

    def aside(self) -> Door:
        """Return a door to the same pipeline for calls with other arguments, which decide the shapes of its loop."""
        ...


class PipelineDoor:
    """The door of a loaded pipeline, whose own scheduler is in place whenever the door is shut.

    Attributes:
        pipe: The diffusers pipeline.
        device: Where everything runs.
        scheduler: The stand-in that is conducted.
        native: The pipeline's own scheduler.
        routes: What is known of its networks.
        stubs: Whether a round whose model output is not read skips them.
    """

    def __init__(self, pipe: Any, routes: Routes) -> None:
        self.pipe, self.device, self.routes = pipe, routes.device, routes
        self._called = _settled(pipe)
        self.native, self.stubs = own_scheduler(pipe), True
        self.scheduler: Any = stand_in_for(trained_scheduler(self.native))

    def conduct(self, conductor: Conductor, given: dict[str, Any], seeds: Tensor) -> Tensor:
        """Call the pipeline once, as `conductor` says; see `Door`.

        Raises:
            PipelineRefused: If the pipeline raises.
            PipelineError: If it does not reach recorded states again.
        """
        vars(self.pipe)["scheduler"] = self.scheduler
        self.scheduler.conduct(conductor)
        conductor.rows, self.routes.stubs = len(seeds), self.stubs
        try:
            call = type(self.pipe).__call__
            routed, drawn = self.routes.on(self.pipe, conductor, len(seeds)), global_stream(seeds, self.device)
            call = inspect.unwrap(call) if torch.is_grad_enabled() else call
            same = same_states(self.pipe, seeds, own=conductor.times is not None)
            with same, calling_pipeline(self.pipe), routed, drawn:
                return output(call(self._called, **given))
        finally:
            self.scheduler.conduct(None)
            vars(self.pipe)["scheduler"] = self.native

    def cached(self, cache: FeatureCache | None, rounds: int) -> AbstractContextManager[None]:
        """Return the context of `caching.at_work.cached`."""
        return cached(self.pipe, experts(self.pipe), cache, rounds)

    def aside(self) -> PipelineDoor:
        """Return a door to the same pipeline with new routes."""
        return PipelineDoor(self.pipe, Routes(self.routes.networks, self.device, self.routes.autocast))


def _settled(pipe: Any) -> Any:
    """Return an object that is the pipeline in all but this: it looks once for the device on which it runs.

    diffusers looks for hooks on every module of every component, each time it is asked, several times a call. Adapters
    multiply the modules, a replay is a call, and no pipeline moves once it has been called.
    """
    here = functools.cache(lambda: pipe._execution_device)
    cls = type(pipe)
    body = {"_execution_device": property(lambda _: here()), "__module__": cls.__module__}
    return twin(pipe, cls.__name__, body)


def fresh_routes(pipe: Any, spec: PolicySpec, device: torch.device) -> Routes:
    """Return new routes: call arguments decide the shapes of model outputs."""
    return Routes(loop_networks(pipe), device, spec.precision)


def call_natively(pipe: Any, routes: Routes, given: dict[str, Any], seeds: Tensor) -> Any:
    """Call a pipeline as a user would, with its own scheduler, in the precision of `routes`."""
    routed = routes.on(pipe, Conductor(), len(seeds))
    with torch.no_grad(), global_stream(seeds, routes.device), routed:
        return output(pipe(**given))
