"""Where the weights of a network lie: whole on the device of each process, or however a runtime spreads them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Layout(Protocol):
    """Puts the weights of networks into place, and does what depends on where they lie."""

    @property
    def spread(self) -> bool:
        """Whether a process holds a part of each weight only. Networks are then not moved whole to the device."""
        ...

    @property
    def in_step(self) -> bool:
        """Whether processes have to call the networks together, because none has all that a call needs."""
        ...

    def place(self, network: nn.Module, trained: Collection[str]) -> None:
        """Put a network into place, its trained weights in float32.

        Args:
            network: On the device, or where it was loaded if it will be spread.
            trained: Names of its parameters that are trained. They may be other objects afterwards.
        """
        ...

    def exchange(self, trained: Mapping[str, nn.Parameter], frozen: dict[str, Tensor]) -> None:
        """Give trained parameters the values of a frozen copy, and the copy what they had; twice restores both."""
        ...

    def gradients(self, of: Tensor, by: Sequence[nn.Parameter], *, kept: bool) -> tuple[Tensor, ...]:
        """Return the gradients of a scalar, whole; `kept` keeps its graph.

        The scalar is the same on every process, and no parameter has a gradient yet.
        """
        ...

    def sampling(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is learned, so that what is gathered of the networks may stay."""
        ...


@dataclass(frozen=True)
class Whole:
    """Every process has all weights, on its own device, as they were loaded.

    Attributes:
        spread: False.
        in_step: False.
    """

    spread: bool = False
    in_step: bool = False

    def place(self, network: nn.Module, trained: Collection[str]) -> None:
        """Make the trained weights float32."""
        for _, parameter in chosen(network, trained):
            parameter.data = parameter.data.float()

    def exchange(self, trained: Mapping[str, nn.Parameter], frozen: dict[str, Tensor]) -> None:
        """Swap the memory of the two, which copies nothing."""
        for name, parameter in trained.items():
            parameter.data, frozen[name] = frozen[name], parameter.data

    def gradients(self, of: Tensor, by: Sequence[nn.Parameter], *, kept: bool) -> tuple[Tensor, ...]:
        """Return the gradients of a scalar; nothing is left in the parameters."""
        return torch.autograd.grad(of, by, retain_graph=kept, materialize_grads=True)

    def sampling(self) -> AbstractContextManager[None]:
        """Return a context that changes nothing."""
        return nullcontext()


def chosen(network: nn.Module, names: Collection[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a network that have these names."""
    return ((name, parameter) for name, parameter in network.named_parameters() if name in names)
