"""Which weights are trained: low-rank adapters through PEFT, or the denoiser's own."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from alignment.errors import ConfigError
from alignment.policy.networks.adapter_kinds import Adapter, scale_of
from alignment.policy.networks.spec import Lora

ADAPTER = "default"
"""Name of the adapter that is trained."""


def lora_targets(denoiser: nn.Module) -> list[str]:
    """Return the linear layers inside the denoiser's blocks, without those that modulate by time.

    Blocks are whatever stands in a ModuleList; embedders and the output projection stay frozen.
    """
    lists = [name for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList)]
    return [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear)
        and any(name.startswith(prefix + ".") for prefix in lists)
        and not re.search(r"(^|\.)(norm|adaln|time_emb|modulation)", name.lower())
    ]


def add_lora(denoiser: Any, lora: Lora, seed: int, start: Adapter | None = None) -> dict[str, nn.Parameter]:
    """Add float32 adapters and return their weights by name.

    Without `start` the first step starts from the denoiser itself.

    Args:
        denoiser: The network.
        lora: How adapters are made.
        seed: Of new ones.
        start: Those to go on with.

    Raises:
        ConfigError: If the targets bind no module, or the rank is not that of `start`.
    """
    from diffusers.loaders.peft import PeftAdapterMixin

    config = _fresh(denoiser, lora) if start is None else start.config
    if start is not None and lora.rank is not None and start.ranks != {lora.rank}:
        found = ", ".join(map(str, sorted(start.ranks)))
        raise ConfigError(
            f"{start.origin} has rank {found}, but policy.lora.rank is {lora.rank}; leave policy.lora.rank out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if issubclass(type(denoiser), PeftAdapterMixin):
            denoiser.add_adapter(config, ADAPTER)
        else:  # what diffusers' own method does, for networks that lack it
            inject_adapter_in_model(config, denoiser, ADAPTER)
    trainable = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    if start is not None:
        set_peft_model_state_dict(denoiser, dict(start.weights), ADAPTER)
    _refuse_keywords(denoiser)
    return trainable


def bound_modules(denoiser: nn.Module, lora: Lora) -> list[str]:
    """Return the names of the modules that new adapters are for.

    Raises:
        ConfigError: If there is none.
    """
    targets = list(lora.targets) if lora.targets is not None else lora_targets(denoiser)
    names = [name for name, _ in denoiser.named_modules()]
    bound = [name for name in names if any(name == t or name.endswith("." + t) for t in targets)]
    if not bound:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in denoiser.named_modules() if isinstance(m, nn.Linear)})
        raise ConfigError(
            f"policy.lora.targets {targets} bind no module of {type(denoiser).__name__}; "
            f"its linear layers end in {', '.join(linear)}"
        )
    return bound


def _fresh(denoiser: nn.Module, lora: Lora) -> LoraConfig:
    """Return what PEFT makes new adapters from."""
    bound = bound_modules(denoiser, lora)
    for pattern in lora.ranks:
        if not any(get_pattern_key([pattern], name) == pattern != name or name == pattern for name in bound):
            raise ConfigError(
                f"policy.lora.ranks.{pattern} is the ending of no adapted module of {type(denoiser).__name__}; those "
                f"end in {', '.join(sorted({name.rsplit('.', 1)[-1] for name in bound}))}"
            )
    return LoraConfig(
        r=lora.usual_rank,
        lora_alpha=lora.usual_rank if lora.alpha is None else lora.alpha,
        target_modules=list(lora.targets) if lora.targets is not None else lora_targets(denoiser),
        init_lora_weights=lora.init,
        rank_pattern=dict(lora.ranks),
        alpha_pattern=dict(lora.ranks) if lora.alpha is None else {},
        use_dora=lora.dora,
        use_rslora=lora.rslora,
    )


def fold(network: Any, adapter: Adapter, weight: float) -> None:
    """Fold an adapter, times `weight`, into the weights of the layers it is for."""
    inject_adapter_in_model(adapter.config, network, ADAPTER)
    set_peft_model_state_dict(network, dict(adapter.weights), ADAPTER)
    for layer in adapter_layers(network):
        layer.scale_layer(weight)
    fold_in(network)


def updates(network: nn.Module, adapter: Adapter, weight: float) -> Iterator[tuple[nn.Module, Callable[[], Tensor]]]:
    """Yield the layers that an adapter is for, and what makes the update of each, times `weight`.

    An update is as large as the weight it is for, so it is made when it is needed.
    """
    for module in adapter.modules:
        layer: Any = network.get_submodule(module)
        a, b = (adapter.weights[f"{module}.lora_{side}.weight"].to(layer.weight.device).float() for side in "AB")
        scale = weight * scale_of(adapter, module)
        yield layer, functools.partial(_update, a, b, scale, layer.weight.shape)


def _update(a: Tensor, b: Tensor, scale: float, shape: torch.Size) -> Tensor:
    return (b.flatten(1) @ a.flatten(1)).reshape(shape) * scale


@contextmanager
def added(layers: Sequence[tuple[Any, Callable[[], Tensor]]]) -> Iterator[None]:
    """Add updates to the weights of layers, and put the very same weights back afterwards."""
    originals = [(layer, layer.weight.data) for layer, _ in layers]
    try:
        for layer, update in layers:
            layer.weight.data = (layer.weight.data + update()).to(layer.weight.dtype)
        yield
    finally:
        for layer, original in reversed(originals):
            layer.weight.data = original


def fold_in(network: Any) -> None:
    """Fold the adapters of `network` into the weights they adapt, and take them away."""
    adapted = set(map(id, adapter_layers(network)))
    for name, layer in [(name, module) for name, module in network.named_modules() if id(module) in adapted]:
        layer.merge(adapter_names=[ADAPTER])
        network.set_submodule(name, layer.get_base_layer())
    del network.peft_config


def _refuse_keywords(denoiser: nn.Module) -> None:
    """Name the adapter that its network calls with `input=`: PEFT's layers name that argument otherwise."""
    layers = dict(denoiser.named_modules())
    adapted = [name for name, module in layers.items() if isinstance(module, BaseTunerLayer)]
    kinds = sorted({kind for name in adapted if (kind := name.rsplit(".", 1)[-1]).isidentifier()})

    def refuse(name: str, _: nn.Module, args: tuple[object, ...], named: dict[str, object]) -> None:
        if not args and "input" in named:
            own = name.rsplit(".", 1)[-1]
            raise ConfigError(
                f"policy.lora.targets: {type(denoiser).__name__} calls {name} with a named input, which adapters of "
                f"PEFT do not take, here or in plain diffusers; leave {own} out: "
                f"policy.lora.targets=[{', '.join(kind for kind in kinds if kind != own)}]"
            )

    for name in adapted:
        layers[name].register_forward_pre_hook(functools.partial(refuse, name), with_kwargs=True)


def unfreeze(denoiser: nn.Module, patterns: tuple[str, ...] | None) -> dict[str, nn.Parameter]:
    """Make the denoiser's own weights trainable, in the dtype they have, and return them by name.

    Args:
        denoiser: The network.
        patterns: Regular expressions; a parameter is trained if one of them is found in its name. None trains all.

    Raises:
        ConfigError: If no parameter matches.
    """
    chosen = {
        name: p
        for name, p in denoiser.named_parameters()
        if patterns is None or any(re.search(pattern, name) for pattern in patterns)
    }
    if not chosen:
        raise ConfigError(f"policy.trainable {list(patterns or ())} matches no parameter of {type(denoiser).__name__}")
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def adapter_layers(denoiser: nn.Module) -> list[Any]:
    """Return the layers of the denoiser that carry an adapter."""
    return [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def without(layers: Sequence[Any]) -> Iterator[None]:
    """Switch the adapters of `layers` off; inside, the denoiser is the reference."""
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


@contextmanager
def merged(layers: Sequence[Any]) -> Iterator[None]:
    """Fold the adapters of `layers` into the weights they adapt, and put the very same weights back afterwards."""
    folded = [layer for layer in layers if not layer.disable_adapters]  # none where what samples is the reference
    weights = [layer.get_base_layer().weight for layer in folded]
    originals = [weight.data for weight in weights]
    for layer, weight in zip(folded, weights, strict=True):
        weight.data = weight.data + layer.get_delta_weight(ADAPTER).detach().to(weight.dtype)
    try:
        with without(folded):
            yield
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.data = original
