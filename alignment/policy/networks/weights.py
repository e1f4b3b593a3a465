"""The weights that are trained, wherever they are in a pipeline, and frozen copies of them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from alignment.errors import ConfigError
from alignment.policy.networks.adapter_kinds import Adapter, alpha_of
from alignment.policy.networks.adapter_places import Place
from alignment.policy.networks.adapters import NewAdapter, check_apart, read_adapters
from alignment.policy.networks.compiling.compiler import compile_network
from alignment.policy.networks.float8 import store_as_float8
from alignment.policy.networks.layout import Layout, Whole, chosen
from alignment.policy.networks.recompute import let_recompute
from alignment.policy.networks.single_file import check_rounded, check_start
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.networks.tuning import (
    adapter_layers,
    add_lora,
    added,
    bound_modules,
    fold,
    merged,
    unfreeze,
    updates,
    without,
)


@dataclass(frozen=True)
class Brought:
    """Adapters that a run does not begin without, by the component that each is for.

    Attributes:
        frozen: What is folded into the weights before anything else, with its weight, in this order.
        samplers: The same, of what is in the weights only while they sample.
        start: What goes on being trained; None where new adapters are.
        under: The numbers among `frozen` of what each was trained on top of, by their numbers in that training, as far
            as its folder says it.
    """

    frozen: Sequence[tuple[Mapping[str, Adapter], float]] = ()
    samplers: Sequence[tuple[Mapping[str, Adapter], float]] = ()
    start: Mapping[str, Adapter] | None = None
    under: Mapping[Place, Mapping[int, int]] = field(default_factory=dict)


def bring(spec: PolicySpec, pipe: Any, networks: Mapping[str, Any]) -> Brought:
    """Read the adapters that `spec` names; nothing in the pipeline is changed.

    Raises:
        ConfigError: If one of them is not there, cannot be read, or is not of these networks.
    """
    check_rounded(spec, networks)
    stack: dict[str, list[tuple[Mapping[str, Adapter], float]]] = {"always": [], "sampling": []}
    for k, told in enumerate(spec.adapters):
        adapters = read_adapters(f"policy.adapters.{k}.path", told.path, pipe, networks)
        if lacking := networks.keys() - adapters.keys():
            warnings.warn(
                f"policy.adapters.{k}.path: {told.path} is for the {' and '.join(sorted(adapters))} alone: the "
                f"{' and '.join(sorted(lacking))} has nothing of it",
                stacklevel=2,
            )
        stack[told.when].append((adapters, told.weight))
        others = {adapter.kind for adapter in adapters.values()} - {"LoRA"}
        if told.when == "sampling" and others:
            raise ConfigError(
                f"policy.adapters.{k}.when: {told.path} is a {others.pop()}, which is not put in and out; use always"
            )
    frozen, samplers = stack.values()
    start = None
    if spec.lora is not None and spec.lora.start is not None:
        start = read_adapters("policy.lora.start", spec.lora.start, pipe, networks)
        check_start(spec, networks, start)
        if lacking := networks.keys() - start.keys():
            raise ConfigError(
                f"policy.lora.start: {spec.lora.start} has adapters of the {' and '.join(start)} alone, and the "
                f"{' and '.join(sorted(lacking))} is trained, too"
            )
    stacked = [adapters for adapters, _ in frozen]
    under = _find_under(spec, stacked, pipe, networks)
    whole = [*stacked, *(adapters for adapters, _ in samplers)]
    if start is not None:
        check_apart(whole, start)
    else:
        check_apart(whole, {} if spec.lora is None else _new(spec.lora, networks))
    return Brought(frozen, samplers, start, under)


def _find_under(
    spec: PolicySpec, stacked: Sequence[Mapping[str, Adapter]], pipe: Any, networks: Mapping[str, Any]
) -> Mapping[Place, Mapping[int, int]]:
    """Return which of the frozen adapters those are that others were trained on top of, as their folders have them.

    Raises:
        ConfigError: Naming one that is missing.
    """
    found: dict[Place, dict[int, int]] = {}
    named = {f"policy.adapters.{k}.path": told.path for k, told in enumerate(spec.adapters)}
    if spec.lora is not None and spec.lora.start is not None:
        named["policy.lora.start"] = spec.lora.start
    for place in (Place(key, name) for key, name in named.items()):
        left, found[place] = dict(enumerate(stacked)), {}
        for then, file in place.lying_under().items():
            under = read_adapters(place.key, str(file), pipe, networks)
            number = next((k for k, adapters in left.items() if _same(under, adapters)), None)
            if number is None:
                raise ConfigError(
                    f"{place.key}: {place.name} was trained on top of {file}, which is not among policy.adapters; "
                    f"add it there, {{path: {file}, weight: W}}, with the weight that the card (README.md) beside it "
                    "says"
                )
            found[place][then] = number
            del left[number]  # the same one may lie there twice
    return found


def _same(one: Mapping[str, Adapter], other: Mapping[str, Adapter]) -> bool:
    """Say whether adapters are the same: tensors and scales of every component."""
    return one.keys() == other.keys() and all(_alike(adapter, other[name]) for name, adapter in one.items())


def _alike(one: Adapter, other: Adapter) -> bool:
    return (
        one.weights.keys() == other.weights.keys()
        and all(torch.equal(z, other.weights[name]) for name, z in one.weights.items())
        and all(alpha_of(one, module) == alpha_of(other, module) for module in one.modules)
    )


def _new(lora: Lora, networks: Mapping[str, Any]) -> Mapping[str, NewAdapter]:
    """Return what will be adapted where no file says it."""
    kind = "DoRA" if lora.dora else "LoRA"
    return {name: NewAdapter(bound_modules(network, lora), kind) for name, network in networks.items()}


class Weights:
    """The trained weights of a denoiser, or of several that take turns.

    Attributes:
        spec: What of them is trained.
        brought: Adapters that training began with.
        experts: The networks by name; the first is the main one.
        trainable: Trained parameters by name, float32; a further network's begin with its own name.
        adapters: Layers of the networks that carry one.
        samplers: Layers, and what is added to their weights while they sample.
        snapshots: Named frozen copies of `trainable`.
        layout: Where they lie.
    """

    def __init__(
        self,
        networks: Mapping[str, Any],
        spec: PolicySpec,
        seed: int,
        brought: Brought = Brought(),
        layout: Layout | None = None,
    ) -> None:
        self.spec, self.brought, self.layout = spec, brought, layout or Whole()
        self.experts = dict(networks)
        self.trainable: dict[str, nn.Parameter] = {}
        for adapters, weight in brought.frozen:
            for name, adapter in adapters.items():
                fold(self.experts[name], adapter, weight)
        self.samplers = [
            (layer, update)
            for adapters, weight in brought.samplers
            for name, adapter in adapters.items()
            for layer, update in updates(self.experts[name], adapter, weight)
        ]
        start = brought.start or {}
        for k, (name, network) in enumerate(self.experts.items()):
            if spec.lora is None:
                names = tuple(unfreeze(network, spec.trainable))
            else:
                names = tuple(add_lora(network, spec.lora, seed + k, start.get(name)))
            if spec.quantize == "float8":  # not before: new adapters take the precision of what they adapt
                store_as_float8(network, getattr(torch, spec.dtype))
            let_recompute(network, spec.gradient_checkpointing, whole=spec.lora is None)
            self.layout.place(network, names)
            self.trainable |= {f"{name}.{key}" if k else key: p for key, p in chosen(network, names)}
            compile_network(network, spec.compile)
        self.adapters = [layer for network in self.experts.values() for layer in adapter_layers(network)]
        self._sampling = self._folded = False
        self.snapshots: dict[str, dict[str, Tensor]] = {}
        if spec.lora is not None and spec.lora.init == "pissa":
            self.keep("reference")

    @property
    def reference_is_off(self) -> bool:
        """Whether the reference is the adapters switched off, and no copy of what training began at."""
        return self.spec.lora is not None and self.spec.lora.starts_from_nothing

    @property
    def taken_out(self) -> Mapping[str, Tensor] | None:
        """What new adapters took out of the weights they adapt, so that weights and adapters began as the weights."""
        return self.snapshots["reference"] if self.spec.lora is not None and self.spec.lora.init == "pissa" else None

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Put a frozen copy of the trained weights in place: "reference", "behaviour" or "ema"; "live" changes nothing.

        With new adapters the reference is the adapter switched off.
        """
        if name == "live":
            yield
            return
        if self._folded:
            raise RuntimeError(f"the live adapters are folded in: choose the weights ({name}) before sampling()")
        if name == "reference" and self.reference_is_off:
            with without(self.adapters):
                yield
        else:
            self.layout.exchange(self.trainable, self.snapshots[name])
            try:
                yield
            finally:
                self.layout.exchange(self.trainable, self.snapshots[name])

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Keep the weights as they sample: adapters folded in, where that was asked for.

        Every sampling call enters it by itself; around several calls it folds, or gathers, once. Weights are chosen
        outside.
        """
        if self._sampling:
            yield
            return
        merges = self.spec.lora is not None and self.spec.lora.merge
        self._sampling, self._folded = True, merges or bool(self.samplers)
        try:
            with self.layout.sampling(), added(self.samplers), merged(self.adapters if merges else ()):
                yield
        finally:
            self._sampling = self._folded = False

    @contextlib.contextmanager
    def as_trained(self) -> Iterator[None]:
        """Sample without the adapters that are there for sampling alone, so that a visit answers as the rollout did."""
        samplers, self.samplers = self.samplers, []
        try:
            yield
        finally:
            self.samplers = samplers

    def keep(self, name: str) -> None:
        """Start the frozen copy `name` at the live weights; the reference of a new adapter needs none."""
        if name in self.snapshots or (name == "reference" and self.reference_is_off):
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
