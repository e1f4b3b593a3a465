"""Adapters that somebody trained elsewhere, for the tests of those who bring some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from alignment.checkpoints.adapter_files import trained_adapters, write_adapter
from alignment.checkpoints.formats import Form, write_form
from alignment.policy.networks.adapter_kinds import Adapter, config_of, shape_of
from alignment.policy.networks.adapter_places import LORA_FILE
from alignment.policy.networks.loading import experts
from alignment.policy.networks.module_names import names_of
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.networks.tuning import lora_targets
from alignment.policy.networks.weights import Weights


def export_ones(make: Callable[[], Any], path: Path, form: Form) -> tuple[dict[str, tuple[int, ...]], str]:
    """Write an adapter of rank 1, all ones, of a network without numbers; return its modules' shapes, and its class."""
    with torch.device("meta"):
        network = make()
    modules = dict(network.named_modules())
    names = names_of(type(network).__name__)
    taken = [name for name in lora_targets(network) if not names.leaves_out(form, name)]
    shapes = {name: cast(tuple[int, ...], shape_of(modules[name])) for name in taken}
    parts = {name: {"A": torch.ones(1, *shape[1:]), "B": torch.ones(shape[0], 1)} for name, shape in shapes.items()}
    weights = {f"{name}.lora_{side}.weight": z for name, part in parts.items() for side, z in part.items()}
    adapter = Adapter("transformer", weights, config_of(parts, dict.fromkeys(shapes, 1.0), rslora=False))
    write_form(adapter, path, form, type(network).__name__, {})
    return shapes, type(network).__name__


def save(pipe: Any, folder: Path, lora: Lora) -> None:
    """Write adapters of a pipeline that were moved; the pipeline keeps them."""
    folder.mkdir(exist_ok=True)
    weights = Weights(experts(pipe), PolicySpec("somewhere", lora=lora), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights.trainable.values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    for name, adapter in trained_adapters(weights).items():
        write_adapter(adapter, folder / LORA_FILE, name)
