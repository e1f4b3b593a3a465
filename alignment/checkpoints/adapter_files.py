"""Adapters on the disk, as diffusers lays them out: a file for each trained network, and for each frozen adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_config
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignment.checkpoints.parts import whole
from alignment.errors import CheckpointError
from alignment.policy.networks.adapter_kinds import Adapter, Config, config_of
from alignment.policy.networks.adapter_places import FROZEN
from alignment.policy.networks.adapters import SETTINGS
from alignment.policy.networks.tuning import ADAPTER
from alignment.policy.networks.weights import Weights


def frozen_file(number: int, component: str, main: str) -> str:
    """Return the name of the file of a frozen adapter, by its number among those of `lying_under`."""
    return f"{FROZEN}{number}{'' if component == main else f'_{component}'}.safetensors"


def lying_under(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of `policy.adapters` that are in the weights that were trained, as the config has them."""
    return [told for told in config["policy"].get("adapters") or () if told.get("when", "always") == "always"]


def trained_adapters(weights: Weights) -> dict[str, Adapter]:
    """Return the trained adapters that are in place now, by component, as an update of the pipeline that was loaded."""
    found: dict[str, Adapter] = {}
    for k, (name, network) in enumerate(weights.experts.items()):
        # PEFT's own names, for UNets too: diffusers' older names cover attention alone; a file of both loads by half.
        tensors = {key: whole(part) for key, part in get_peft_model_state_dict(network, adapter_name=ADAPTER).items()}
        found[name] = Adapter(name, tensors, network.peft_config[ADAPTER])
        if weights.taken_out is not None:
            prefix = f"{name}." if k else ""
            began = {
                key.removeprefix(prefix): whole(z) for key, z in weights.taken_out.items() if key.startswith(prefix)
            }
            found[name] = _without(found[name], began, network)
    return found


def _without(adapter: Adapter, began: Mapping[str, Tensor], network: torch.nn.Module) -> Adapter:
    """Return an adapter less what it took out of its network's weights: the two side by side, twice the rank."""
    modules: Mapping[str, Any] = dict(network.named_modules())
    parts: dict[str, dict[str, Tensor]] = {}
    for name in adapter.modules:
        (a, b), (a0, b0) = (
            [found[f"{name}.lora_{side}{kind}.weight"] for side in "AB"]
            for found, kind in ((adapter.weights, ""), (began, f".{ADAPTER}"))
        )
        parts[name] = {"A": torch.cat([a, a0]), "B": torch.cat([b, -b0], 1)}
    alphas = {name: modules[name].scaling[ADAPTER] * len(part["A"]) for name, part in parts.items()}
    weights = {f"{name}.lora_{side}.weight": z for name, part in parts.items() for side, z in part.items()}
    return Adapter(adapter.origin, weights, config_of(parts, alphas, rslora=False))


def write_adapter(adapter: Adapter, path: Path, prefix: str) -> None:
    """Write an adapter.

    Args:
        adapter: The adapter of one network.
        path: A file that does not exist.
        prefix: First part of every name; the main component's, for loaders ask for that whatever they load into.
    """
    header = {"format": "pt", SETTINGS: settings(adapter.config, prefix)}
    save_file({f"{prefix}.{name}": z.detach().cpu().contiguous() for name, z in adapter.weights.items()}, path, header)


def read_own(path: Path) -> Adapter:
    """Return the adapter of a file written here, named as its network is called in it.

    Raises:
        CheckpointError: If the file is not one of those.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        prefix = next(iter(tensors)).partition(".")[0]
        told = json.loads(header[SETTINGS])
        config: Any = get_peft_config({key.removeprefix(f"{prefix}."): value for key, value in told.items()})
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path} is not an adapter as a checkpoint holds it: {error}") from error
    return Adapter(prefix, {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}, config)


def settings(config: Config, prefix: str) -> str:
    """Return the settings of an adapter as diffusers writes them into the header of its file."""
    told = {f"{prefix}.{key}": value for key, value in written(config).items()}
    return json.dumps(told, indent=2, sort_keys=True)


def written(config: Config) -> dict[str, object]:
    """Return the settings of an adapter as JSON can hold them: it has no sets, whose order differs by process."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
