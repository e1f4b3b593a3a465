"""Weights spread over processes, a part of each on every one, by torch's FSDP2.

A block of a network is whole on a process only while it runs; its gradients are added up over processes on their way
back into parts. The network stays the same object with the same names, so that nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from alignment.checkpoints.parts import whole
from alignment.meetings import Meetings
from alignment.policy.networks.layout import chosen
from alignment.training.runtime.together import call_together

LEARNING = "learning from a microbatch"


@dataclass(frozen=True)
class Sharded:
    """Spreads each network over the processes of a mesh: `(shard,)`, or `(replicate, shard)` for several sets of them.

    Attributes:
        mesh: The processes.
        compute: Precision in which networks whose own weights are trained are gathered and run; their parts, the
            gradients' sums and the optimiser's state are float32. None: in that of the weights.
        meetings: Where the processes meet before each call: what ends one of them is then known to all before they wait
            for it.
        stay: Whether what was gathered stays while samples are made.
        spread: True.
        in_step: True.
    """

    mesh: DeviceMesh
    compute: torch.dtype | None
    meetings: Meetings
    stay: bool = False
    spread: bool = True
    in_step: bool = True
    _networks: list[nn.Module] = field(default_factory=list)
    _parts: list[FSDPModule] = field(default_factory=list)

    def place(self, network: nn.Module, trained: Collection[str]) -> None:
        """Spread a network block by block, so that no process holds all of it in float32, or on its device.

        The weights may lie in a file that is mapped into memory: a process then reads its own part of them alone.
        """
        wanted = {id(parameter) for _, parameter in chosen(network, trained)}
        own = len(wanted) == sum(1 for _ in network.parameters())
        # Adapters run in the precision that autocast gives them, beside frozen weights in theirs. Inputs stay as they
        # are: a time in bfloat16 is another time.
        precision = MixedPrecisionPolicy(
            param_dtype=self.compute if own else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for part in [*repeated_blocks(network), network]:
            for parameter in part.parameters():
                if id(parameter) in wanted:
                    parameter.data = parameter.data.float()
            self._parts.append(fully_shard(part, mesh=self.mesh, reshard_after_forward=True, mp_policy=precision))
        self._networks.append(network)
        _without_cached_casts(network)
        call_together(network, f"calling network {len(self._networks)}", self.meetings)

    def exchange(self, trained: Mapping[str, nn.Parameter], frozen: dict[str, Tensor]) -> None:
        """Copy values between the two: what gathers a parameter keeps hold of its memory."""
        self._part()
        with torch.no_grad():
            for name, parameter in trained.items():
                live = parameter.detach().clone()
                parameter.copy_(frozen[name])
                frozen[name] = live

    def gradients(self, of: Tensor, by: Sequence[nn.Parameter], *, kept: bool) -> tuple[Tensor, ...]:
        """Return the gradients of a scalar by way of the parameters, which are left without."""
        of.backward(retain_graph=kept)
        found = tuple(torch.zeros_like(p) if p.grad is None else p.grad for p in by)
        for network in self._networks:
            network.zero_grad(set_to_none=True)
        return tuple(whole(gradient) for gradient in found)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Keep what is gathered, where that was asked for, and part it in the end."""
        if not self.stay:
            yield
            return
        for part in self._parts:
            part.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for part in self._parts:
                part.set_reshard_after_forward(True, recurse=False)
            self._part()

    def _part(self) -> None:
        for part in self._parts:
            part.reshard()


def _without_cached_casts(network: nn.Module) -> None:
    """Keep autocast's copies of weights out of the calls of a network.

    They stay from call to call: the gradient of a later call would go by way of an earlier one's copy, and come when
    the parts have been added up already.
    """

    def begin(*_: object) -> None:
        torch.set_autocast_cache_enabled(False)

    def end(*_: object) -> None:
        torch.set_autocast_cache_enabled(True)

    network.register_forward_pre_hook(begin, prepend=True)
    network.register_forward_hook(end, always_call=True)


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network that follow each other, none of them within another.

    Diffusers' networks say which classes they are, for other purposes; else it is what stands in lists.
    """
    names: set[str] = set()
    if isinstance(network, ModelMixin):
        names |= set(network._repeated_blocks or ())  # pyright: ignore[reportPrivateUsage]  # said nowhere else
        names |= set(network._no_split_modules or ())  # pyright: ignore[reportPrivateUsage]
    found = list(_outermost(network, lambda module: type(module).__name__ in names))
    listed = [block for block in network.modules() if isinstance(block, nn.ModuleList)]
    return found or list(_outermost(network, lambda module: any(module is b for blocks in listed for b in blocks)))


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    for child in module.children():
        if wanted(child):
            yield child
        else:
            yield from _outermost(child, wanted)
