"""The weights that are trained, wherever they are in a pipeline, and frozen copies of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from alignment.policy.networks.spec import PolicySpec
from alignment.policy.networks.tuning import adapter_layers, add_lora, merged, unfreeze, without


class Weights:
    """The trained weights of a denoiser, or of several that take turns.

    Attributes:
        spec: What of them is trained.
        experts: The networks by name; the first is the main one.
        trainable: Trained parameters by name, float32; a further network's begin with its own name.
        adapters: Layers of the networks that carry one.
        snapshots: Named frozen copies of `trainable`.
    """

    def __init__(self, networks: Mapping[str, Any], spec: PolicySpec, seed: int) -> None:
        self.spec = spec
        self.experts = dict(networks)
        self.trainable: dict[str, nn.Parameter] = {}
        for k, (name, network) in enumerate(self.experts.items()):
            chosen = add_lora(network, spec.lora, seed + k) if spec.lora else unfreeze(network, spec.trainable)
            self.trainable |= {f"{name}.{key}" if k else key: p for key, p in chosen.items()}
            if spec.gradient_checkpointing:
                network.enable_gradient_checkpointing()
            if spec.compile:
                network.compile()
        self.adapters = [layer for network in self.experts.values() for layer in adapter_layers(network)]
        self._folded = False
        self.snapshots: dict[str, dict[str, Tensor]] = {}

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Put a frozen copy of the trained weights in place: "reference", "behaviour" or "ema"; "live" changes nothing.

        With adapters the reference is the adapter switched off.
        """
        if name == "live":
            yield
            return
        if self._folded:
            raise RuntimeError(f"the live adapters are folded in: choose the weights ({name}) before sampling()")
        if name == "reference" and self.spec.lora:
            with without(self.adapters):
                yield
        else:
            self._exchange(name)
            try:
                yield
            finally:
                self._exchange(name)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Keep the weights as they sample: adapters folded in, where that was asked for.

        Every call that samples enters it by itself; around several calls it folds once. Weights are chosen outside.
        """
        if self._folded or self.spec.lora is None or not self.spec.lora.merge:
            yield
            return
        self._folded = True
        try:
            with merged(self.adapters):
                yield
        finally:
            self._folded = False

    def _exchange(self, name: str) -> None:
        """Swap the live weights with a copy; twice restores both, bit for bit."""
        frozen = self.snapshots[name]
        for key, parameter in self.trainable.items():
            parameter.data, frozen[key] = frozen[key], parameter.data

    def keep(self, name: str) -> None:
        """Start the frozen copy `name` at the live weights; the reference of an adapter needs none."""
        if name in self.snapshots or (name == "reference" and self.spec.lora):
            return
        self.snapshots[name] = {key: p.detach().clone() for key, p in self.trainable.items()}

    def copy(self, name: str, other: str) -> None:
        """Make the frozen copy `other` what the frozen copy `name` is."""
        for key, kept in self.snapshots[other].items():
            kept.copy_(self.snapshots[name][key])

    def refresh(self, name: str, decay: float) -> None:
        """Move the copy: copy <- decay copy + (1 - decay) live."""
        frozen = self.snapshots[name]
        for key, parameter in self.trainable.items():
            frozen[key].lerp_(parameter.detach(), 1 - decay)
