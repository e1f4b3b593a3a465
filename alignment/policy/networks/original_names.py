"""What the authors of models call the tensors of diffusers' networks, in the files that they publish."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any

import torch
import yaml
from torch import Tensor

from alignment.errors import ConfigError

_KINDS = (".weight", ".bias")
_NEXT, _LAST = "{next}", "{last}"


@dataclass(frozen=True)
class Slot:
    """Where a tensor of diffusers' is in its authors' file.

    Attributes:
        name: Of the tensor, or the module, there.
        part: Its number among those whose rows stand below each other there.
        count: How many those are.
        swapped: Whether its halves are in the other order there.
    """

    name: str
    part: int = 0
    count: int = 1
    swapped: bool = False


@dataclass(frozen=True)
class OriginalNames:
    """Names of one class of network; `original_names.yaml` says what the fields mean."""

    names: Sequence[Sequence[Any]] = ()
    swapped: str | None = None
    blocks: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""

    def slot(self, module: str, last: int | None = None) -> Slot | None:
        """Return where a module, or a tensor of no module, is; None if it has no name.

        Args:
            module: Diffusers' name.
            last: Number of the last block; without it, what may be otherwise there has no name.
        """
        for pattern, replacement, *part in self.names:
            if found := re.fullmatch(pattern, self._begun(module)):
                swapped = (
                    None if self.swapped is None else re.fullmatch(self.swapped.replace(_LAST, "(?P<last>.+)"), module)
                )
                block = None if swapped is None else swapped.groupdict().get("last")
                if block is not None and last is None:
                    return None
                here = swapped is not None and block in (None, str(last))
                count = sum(rule[1] == replacement for rule in self.names) if part else 1
                return Slot(found.expand(replacement), part[0] if part else 0, count, here)
        return None

    def _begun(self, module: str) -> str:
        """Return a name with the beginning that `names` look for."""
        for ours, theirs in self.blocks.items():
            if module == ours or module.startswith(f"{ours}."):
                return theirs + module.removeprefix(ours)
        return module

    def slot_of_tensor(self, name: str, last: int | None) -> Slot | None:
        """Return where a tensor is."""
        if (found := self.slot(name, last)) is not None:
            return found
        kind = next((kind for kind in _KINDS if name.endswith(kind)), None)
        found = None if kind is None else self.slot(name.removesuffix(kind), last)
        return None if found is None else replace(found, name=f"{found.name}{kind}")


def original_names(network_class: str) -> OriginalNames | None:
    """Return the names of a class of network; None where it has none."""
    return _known().get(network_class)


def to_original(network_class: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network as its authors' file has them.

    Args:
        network_class: Of diffusers.
        config: Of the network.
        tensors: By diffusers' names.

    Raises:
        ConfigError: If there are no such names for one of them.
    """
    names = original_names(network_class)
    if names is None:
        raise no_original(network_class, "none are known that diffusers reads back whole")
    layers = config.get("num_layers")
    fused: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        slot = names.slot_of_tensor(name, layers - 1 if isinstance(layers, int) else None)
        if slot is None:
            raise no_original(network_class, f"{name} has none")
        parts = fused.setdefault(slot.name, {})
        if slot.part in parts:
            raise no_original(network_class, f"{name} has that of another tensor, {slot.name}")
        parts[slot.part] = halves_swapped(tensor) if slot.swapped else tensor
    whole = {
        name: torch.cat([parts[k] for k in sorted(parts)]) if len(parts) > 1 else parts[0]
        for name, parts in fused.items()
    }
    return {names.prefix + _numbered(name, whole): tensor.contiguous() for name, tensor in whole.items()}


def no_original(network_class: str, reason: str) -> ConfigError:
    """Return the error of a network that authors' files have no names for."""
    return ConfigError(
        f"--as gguf-ready: there are no names of authors for the tensors of this {network_class}: {reason}; use --as "
        "merged for the whole pipeline"
    )


def halves_swapped(tensor: Tensor) -> Tensor:
    """Return a tensor with its second half of rows first."""
    return torch.cat(tensor.chunk(2)[::-1])


def _numbered(name: str, names: Mapping[str, object]) -> str:
    """Return a name with the number that is free in its list."""
    if _NEXT not in name:
        return name
    start = name.partition(_NEXT)[0]
    taken = {other.removeprefix(start).partition(".")[0] for other in names if other.startswith(start)} - {_NEXT}
    return name.replace(_NEXT, str(len(taken)))


@functools.cache
def _known() -> Mapping[str, OriginalNames]:
    text = resources.files("alignment.policy.networks").joinpath("original_names.yaml").read_text(encoding="utf-8")
    told: Mapping[str, dict[str, Any]] = yaml.safe_load(text)
    own = {name: {key: value for key, value in entry.items() if key != "like"} for name, entry in told.items()}
    for name, entry in told.items():
        if "like" in entry:
            own[name]["names"] = [*entry["names"], *told[entry["like"]]["names"]]
    return {name: OriginalNames(**entry) for name, entry in own.items()}
