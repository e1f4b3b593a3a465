"""What other programs call the modules of a network."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Literal

import yaml

from alignment.policy.networks.fused import Spot, spots
from alignment.policy.networks.original_names import OriginalNames, Slot, original_names

FLAT = "lora_unet_"
"""Before the names of kohya's tools, which have underscores for dots."""

WHOLE = "diffusion_model."
"""What ComfyUI calls the network; before names that need no other prefix."""


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
