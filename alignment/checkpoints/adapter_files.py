"""Adapters on the disk, in the layout of diffusers: a file for each trained network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open

from alignment.errors import CheckpointError
from alignment.policy.networks.tuning import ADAPTER, adapter_layers

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file that `load_lora_weights` looks for."""
_SETTINGS = "lora_adapter_metadata"


def file_name(component: str, main: str) -> str:
    """Return the name of a component's file; the main one has the name that diffusers looks for."""
    return LORA_FILE if component == main else f"pytorch_lora_weights_{component}.safetensors"


def write_adapters(network: Any, path: Path, prefix: str) -> None:
    """Write the adapters of `network`.

    Args:
        network: With adapters.
        path: A file that does not exist.
        prefix: First part of every name; the main component's, for loaders ask for that whatever they load into.
    """
    # PEFT's own names, for UNets too: diffusers' older names cover attention alone, and a file of both loads by half.
    weights = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    settings = network.peft_config[ADAPTER].to_dict()
    # JSON has no sets, and theirs is another order in every process.
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    # Where every pipeline's `save_lora_weights` ends; called here because not every pipeline has one.
    LoraBaseMixin.write_lora_layers(
        state_dict={f"{prefix}.{name}": value.contiguous() for name, value in weights.items()},
        save_directory=str(path.parent),
        is_main_process=True,
        weight_name=path.name,
        save_function=None,  # type: ignore[arg-type]  # None means safetensors
        safe_serialization=True,
        lora_adapter_metadata={f"{prefix}.{key}": value for key, value in settings.items()},
    )


def read_adapters(network: Any, path: Path, prefix: str) -> None:
    """Put the adapters of a file written here into a network without any.

    Raises:
        CheckpointError: If they were trained on another network.
    """
    with safe_open(path, framework="pt") as file:
        weights = {name.removeprefix(f"{prefix}."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()[_SETTINGS])
    modules = dict(network.named_modules())
    for name, value in weights.items():
        target, _, matrix = name.rpartition(".lora_")
        side = 1 if matrix.startswith("A") else 0  # A takes the layer's inputs in, B gives its outputs out
        shape = tuple(modules[target].weight.shape) if target in modules else ()
        if not shape or shape[side] != value.shape[side]:
            raise CheckpointError(
                f"{path} holds adapters of another network than {type(network).__name__}: {name} has shape "
                f"{tuple(value.shape)}, and the layer it is for {f'has shape {shape}' if shape else 'is not there'}; "
                "give the pipeline that it was trained on with `--pipeline PATH`"
            )
    config = LoraConfig(**{name.removeprefix(f"{prefix}."): value for name, value in header.items()})
    inject_adapter_in_model(config, network, ADAPTER)
    set_peft_model_state_dict(network, weights, ADAPTER)


def fold_in(network: Any) -> None:
    """Fold the adapters of `network` into the weights they adapt, and take them away."""
    adapted = set(map(id, adapter_layers(network)))
    for name, layer in [(name, module) for name, module in network.named_modules() if id(module) in adapted]:
        base = layer.get_base_layer()
        base.weight.data += layer.get_delta_weight(ADAPTER).detach().to(base.weight.dtype)
        network.set_submodule(name, base)
