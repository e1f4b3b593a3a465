"""The way through a pipeline's own `__call__`, which a conductor takes."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor

from alignment.policy.networks.loading import loop_networks, own_scheduler, trained_scheduler
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.pipeline_call import asking, global_stream, output, same_states
from samplers import Conductor, Routes, stand_in_for


class Door(Protocol):
    """Conducts calls of a pipeline, or does as if.

    Attributes:
        pipe: The diffusers pipeline.
        device: Where everything runs.
        scheduler: The stand-in that is conducted; the forward process and the grid are read from it.
        stubs: Whether a round whose answer nobody reads goes without the networks.
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
            What the pipeline hands back: latents or pixels, by `given["output_type"]`.
        """
        ...


class PipelineDoor:
    """The door of a loaded pipeline, whose own scheduler is in place whenever the door is shut.

    Attributes:
        pipe: The diffusers pipeline.
        device: Where everything runs.
        scheduler: The stand-in that is conducted.
        native: The pipeline's own scheduler.
        routes: What is known of its networks.
        stubs: Whether a round whose answer nobody reads goes without them.
    """

    def __init__(self, pipe: Any, routes: Routes) -> None:
        self.pipe, self.device, self.routes = pipe, routes.device, routes
        self.native, self.stubs = own_scheduler(pipe), True
        self.scheduler: Any = stand_in_for(trained_scheduler(self.native))

    def conduct(self, conductor: Conductor, given: dict[str, Any], seeds: Tensor) -> Tensor:
        """Call the pipeline once, as `conductor` says; see `Door`.

        Raises:
            PipelineRefused: If the pipeline raises.
            PipelineError: If it does not come by recorded states again.
        """
        vars(self.pipe)["scheduler"] = self.scheduler
        self.scheduler.conduct(conductor)
        conductor.rows, self.routes.stubs = len(seeds), self.stubs
        try:
            call = type(self.pipe).__call__
            routed, drawn = self.routes.on(self.pipe, conductor, len(seeds)), global_stream(seeds, self.device)
            call = inspect.unwrap(call) if torch.is_grad_enabled() else call
            with same_states(self.pipe, seeds, own=conductor.times is not None), asking(self.pipe), routed, drawn:
                return output(call(self.pipe, **given))
        finally:
            self.scheduler.conduct(None)
            vars(self.pipe)["scheduler"] = self.native


def fresh_routes(pipe: Any, spec: PolicySpec, device: torch.device) -> Routes:
    """Return routes that know nothing yet: call arguments decide the shapes of a network's answers."""
    return Routes(loop_networks(pipe), device, None if spec.autocast is None else torch.bfloat16)


def call_natively(pipe: Any, routes: Routes, given: dict[str, Any], seeds: Tensor) -> Any:
    """Call a pipeline as a user would, with its own scheduler, in the precision of `routes`."""
    routed = routes.on(pipe, Conductor(), len(seeds))
    with torch.no_grad(), global_stream(seeds, routes.device), routed:
        return output(pipe(**given))
