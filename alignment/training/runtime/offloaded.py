"""Weights whose optimiser works in main memory, beside the device that they are on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Offloaded:
    """Weights, and copies of them in main memory, which an optimiser changes in their place.

    Before an update the copies are made what the weights are, so that nothing else needs to know of them.

    Attributes:
        weights: On the device, by name.
        copies: In main memory, by name; where the device is a GPU it can be written to without a detour.
    """

    weights: Mapping[str, nn.Parameter]
    copies: Mapping[str, nn.Parameter]

    @classmethod
    def of(cls, weights: Mapping[str, nn.Parameter]) -> Offloaded:
        """Return weights with copies of their size."""
        return cls(weights, {name: nn.Parameter(_room(weight.detach())) for name, weight in weights.items()})

    def bring(self) -> None:
        """Copy the weights, and move their gradients, to main memory."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                assert weight.grad is not None  # one that was not reached has zeros by now
                self.copies[name].copy_(weight)
                self.copies[name].grad, weight.grad = weight.grad.to("cpu"), None

    def give_back(self) -> None:
        """Make the weights what their copies are."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(self.copies[name])
                self.copies[name].grad = None


def _room(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)
