"""What other programs, and the authors of models in the files that they publish, call what diffusers' networks have."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from alignment.errors import ConfigError

FLAT = "lora_unet_"
"""Before the names of kohya's tools, which have underscores for dots."""

WHOLE = "diffusion_model."
"""What ComfyUI calls the network; before names that need no other prefix."""


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
    return _published().get(network_class)


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
def _published() -> Mapping[str, OriginalNames]:
    text = resources.files("alignment.policy.networks").joinpath("original_names.yaml").read_text(encoding="utf-8")
    told: Mapping[str, dict[str, Any]] = yaml.safe_load(text)
    own = {name: {key: value for key, value in entry.items() if key != "like"} for name, entry in told.items()}
    for name, entry in told.items():
        if "like" in entry:
            own[name]["names"] = [*entry["names"], *told[entry["like"]]["names"]]
    return {name: OriginalNames(**entry) for name, entry in own.items()}


@dataclass(frozen=True)
class Spot:
    """A matrix of the authors.

    Attributes:
        modules: Those of diffusers whose rows are in it, from above.
        swapped: Whether its halves are in the other order than diffusers'.
    """

    modules: tuple[str, ...]
    swapped: bool = False


def spots(modules: Sequence[str], names: OriginalNames, last: int | None) -> dict[str, Spot]:
    """Return the authors' matrices by their names, as far as diffusers' modules have all of their rows."""
    found: dict[str, dict[int, str]] = {}
    slots: dict[str, Slot] = {}
    for module in modules:
        if (slot := names.slot(module, last)) is not None:
            found.setdefault(slot.name, {})[slot.part] = module
            slots[slot.name] = slot
    return {
        name: Spot(tuple(parts[k] for k in sorted(parts)), slots[name].swapped)
        for name, parts in found.items()
        if len(parts) == slots[name].count
    }


Program = Literal["comfyui", "kohya"]


@dataclass(frozen=True)
class ModuleNames:
    """Names of one class of network.

    Attributes:
        comfyui: Prefix of ComfyUI's names; None where it publishes none.
        kohya: Whether kohya's tools have diffusers' names or the authors'; None where they do not know the class.
        left_out: (regular expression) modules that those adapt nothing of.
        renames: (regular expression, replacement) from diffusers' names to ComfyUI's.
        authors: The authors' names, where one of the two has those.
    """

    comfyui: str | None = None
    kohya: Literal["diffusers", "authors"] | None = None
    left_out: str | None = None
    renames: Sequence[Sequence[str]] = field(default=())
    authors: OriginalNames = field(default=OriginalNames())

    def flat(self, program: Program) -> bool:
        """Return whether names have underscores for dots."""
        return program == "kohya" or (self.comfyui is not None and self.comfyui.endswith("_"))

    def leaves_out(self, program: Program, module: str) -> bool:
        """Return whether a program that knows the class adapts nothing of a module, and would read past it."""
        return program == "kohya" and self.left_out is not None and bool(re.fullmatch(self.left_out, module))

    def slot(self, program: Program, module: str) -> Slot | None:
        """Return a program's name of a module; None where it has none for the class."""
        if (self.comfyui if program == "comfyui" else self.kohya) is None:
            return None
        by_authors = self.comfyui == WHOLE if program == "comfyui" else self.kohya == "authors"
        slot = self.authors.slot(module) if by_authors else Slot(self._renamed(module))
        if slot is None:
            return None
        if program == "kohya":
            return replace(slot, name=FLAT + slot.name.replace(".", "_"))
        if slot.name.startswith(WHOLE):
            return slot
        return replace(slot, name=f"{self.comfyui}{slot.name.replace('.', '_') if self.flat(program) else slot.name}")

    def _renamed(self, module: str) -> str:
        for pattern, name in self.renames:
            module = re.sub(pattern, name, module)
        return module

    def spots(self, modules: Sequence[str], last: int | None) -> dict[str, Spot]:
        """Return what is read of a network: its modules by diffusers' names, and by those that programs write."""
        theirs = spots(modules, self.authors, last)
        return theirs | {self._renamed(name): Spot((name,)) for name in modules} | {n: Spot((n,)) for n in modules}


def names_of(network_class: str) -> ModuleNames:
    """Return what is known of a class of network, by its name; nothing of most."""
    return _known().get(network_class, ModuleNames())


@functools.cache
def _known() -> Mapping[str, ModuleNames]:
    text = resources.files("alignment.policy.networks").joinpath("module_names.yaml").read_text(encoding="utf-8")
    known = {name: ModuleNames(**told) for name, told in yaml.safe_load(text).items()}
    return {
        name: replace(names, authors=original_names(name) or OriginalNames())
        if names.comfyui == WHOLE or names.kohya == "authors"
        else names
        for name, names in known.items()
    }
