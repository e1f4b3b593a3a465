"""Adapters in the formats of other programs: what a file is called, what is in it, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignment.checkpoints.adapter_files import settings, written
from alignment.errors import CheckpointError, ConfigError
from alignment.policy.networks.adapter_kinds import Adapter, alpha_of, scale_of
from alignment.policy.networks.adapter_places import PEFT_CONFIG
from alignment.policy.networks.adapters import SETTINGS
from alignment.policy.networks.fused import together
from alignment.policy.networks.module_names import Slot, names_of

Form = Literal["diffusers", "peft", "comfyui", "kohya"]
"""Ways to write adapters alone."""
WORDS: dict[Form, str] = {"diffusers": "diffusers", "peft": "PEFT", "comfyui": "ComfyUI", "kohya": "kohya's tools"}


def write_form(adapter: Adapter, path: Path, form: Form, kind: str, header: Mapping[str, str]) -> None:
    """Write an adapter of one network, and read it back.

    Args:
        adapter: The adapter; its origin is the first part of diffusers' names.
        path: A file that does not exist; beside PEFT's, its settings are written.
        form: The format.
        kind: Class of the network that it adapts.
        header: What the header says beside what the format asks for.

    Raises:
        ConfigError: If the format has no names for the modules of such a network.
        CheckpointError: If the file does not hold what was to be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _named(adapter, form, kind)}
    own = {SETTINGS: settings(adapter.config, adapter.origin)} if form == "diffusers" else {}
    save_file(tensors, path, {"format": "pt", **header, **own})
    if form == "peft":
        told = json.dumps(written(adapter.config), indent=2, sort_keys=True)
        path.with_name(PEFT_CONFIG).write_text(f"{told}\n", encoding="utf-8")
    check_written(path, tensors)


def check_written(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Open a file that was written and compare every tensor, one by one, bit by bit.

    Raises:
        CheckpointError: Naming the first that is not what it was.
    """
    left = _check(path, dict(tensors))
    if left:
        raise CheckpointError(f"{path} was not written as it should be: it lacks {next(iter(left))}")


def check_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a network with the files that `save_pretrained` made of it, in however many parts.

    Raises:
        CheckpointError: Naming the first that is not what it was.
    """
    left = dict(tensors)
    for path in sorted(folder.glob("*.safetensors")):
        left = _check(path, left)
    if left:
        raise CheckpointError(f"{folder} was not written as it should be: it lacks {next(iter(left))}")


def _check(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that are not in a file, all of whose own are as they should be."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            there, tensor = file.get_tensor(name), tensors.pop(name, None)
            if tensor is None or there.dtype != tensor.dtype or not torch.equal(there, tensor.detach().cpu()):
                raise CheckpointError(f"{path} was not written as it should be: {name} came back otherwise")
    return tensors


def _named(adapter: Adapter, form: Form, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file by their names in it."""
    if form in ("diffusers", "peft"):
        prefix = f"{adapter.origin}." if form == "diffusers" else "base_model.model."
        yield from ((f"{prefix}{name}", tensor) for name, tensor in adapter.weights.items())
        return
    names, flat = names_of(kind), names_of(kind).flat(form)
    groups: dict[str, dict[int, str]] = {}
    slots: dict[str, Slot] = {}
    for module in adapter.modules:
        if names.leaves_out(form, module):
            raise ConfigError(
                f"--as {form}: {WORDS[form]} adapt nothing of {module} of {kind}, and would read past it; train "
                f"without it (policy.lora.targets), or use {_elsewhere(adapter)}"
            )
        slot = names.slot(form, module)
        if slot is None:
            raise no_format(form, kind, adapter)
        group, slots[slot.name] = groups.setdefault(slot.name, {}), slot
        if slot.part in group:
            raise ConfigError(f"{WORDS[form]} has one name, {slot.name}, for {group[slot.part]} and {module} of {kind}")
        group[slot.part] = module
    for name, group in groups.items():
        modules = [group[k] for k in sorted(group)]
        if len(modules) < slots[name].count:
            raise ConfigError(
                f"--as {form}: {WORDS[form]} has one matrix, {name}, for {slots[name].count} of {kind}, of which "
                f"{' and '.join(modules)} alone is adapted; use {_elsewhere(adapter)}"
            )
        yield from _of_matrix(adapter, modules, slots[name], flat=flat)


def no_format(form: Form, kind: str, adapter: Adapter) -> ConfigError:
    """Return the error of a class of network that a format has no names for."""
    return ConfigError(
        f"--as {form}: there are no names for the modules of {kind} that {WORDS[form]} would know; use "
        f"{_elsewhere(adapter)}"
    )


def _elsewhere(adapter: Adapter) -> str:
    """Return the formats that take any adapter of its kind."""
    form = "peft" if adapter.kind == "LoHa" else "diffusers"  # which loads none of those
    return f"--as {form}, or --as merged for the whole pipeline"


def not_loaded(kind: str, network: str) -> ConfigError:
    """Return the error of a kind of adapter that diffusers does not load into a class of network."""
    return ConfigError(
        f"--as diffusers: diffusers loads no {kind} into {network}; use --as peft, or --as merged for the whole "
        "pipeline"
    )


def _of_matrix(adapter: Adapter, modules: Sequence[str], slot: Slot, *, flat: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a matrix that one or several modules are."""
    if adapter.kind in ("LoHa", "LoKr"):
        yield from _of_factors(adapter, modules, slot)
        return
    parts = [_matrices(adapter, module) for module in modules]
    made = parts[0] if slot == Slot(slot.name) else together(slot.name, parts, swapped=slot.swapped)
    down, up = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
    yield f"{slot.name}.{down}.weight", made["A"]
    yield f"{slot.name}.{up}.weight", made["B"]
    yield f"{slot.name}.alpha", made["alpha"]
    if "magnitude" in made:
        yield f"{slot.name}.dora_scale", made["magnitude"].reshape(-1, *[1] * (made["A"].ndim - 1))


def _matrices(adapter: Adapter, module: str) -> dict[str, Tensor]:
    """Return what a module's low-rank update is made of."""
    made = {side: adapter.weights[f"{module}.lora_{side}.weight"] for side in "AB"}
    if (magnitude := adapter.weights.get(f"{module}.lora_magnitude_vector")) is not None:
        made["magnitude"] = magnitude
    return {**made, "alpha": torch.tensor(alpha_of(adapter, module))}


def _of_factors(adapter: Adapter, modules: Sequence[str], slot: Slot) -> Iterator[tuple[str, Tensor]]:
    factors, scale = adapter.parts(modules[0]), scale_of(adapter, modules[0])
    if slot != Slot(slot.name):
        raise ConfigError(
            f"{slot.name} is another matrix there than {modules[0]} is in diffusers, and a {adapter.kind} is not put "
            "together; use --as peft, or --as merged for the whole pipeline"
        )
    if {"lokr_w1", "lokr_w2"} <= set(factors) and scale != 1:
        raise ConfigError(
            f"the LoKr of {modules[0]} is of two whole matrices at scale {scale}, and other programs know no scale of "
            "such; use --as peft"
        )
    yield from ((f"{slot.name}.{part}", factor) for part, factor in factors.items())
    yield f"{slot.name}.alpha", torch.tensor(alpha_of(adapter, modules[0]))


def in_dtype(adapter: Adapter, dtype: torch.dtype | None) -> Adapter:
    """Return an adapter with its numbers in `dtype`; None leaves them as they are.

    Raises:
        ConfigError: If one of them is too large for it.
    """
    if dtype is None:
        return adapter
    weights = {name: tensor.to(dtype) for name, tensor in adapter.weights.items()}
    if odd := next((name for name, tensor in weights.items() if not bool(tensor.isfinite().all())), None):
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"--dtype: {odd} has numbers that are too large for {name}; use bfloat16")
    return Adapter(adapter.origin, weights, adapter.config)
