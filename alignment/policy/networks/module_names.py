"""What other programs call the modules of a network."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

import yaml

FLAT = "lora_unet_"
"""Before the names of kohya's tools, which have underscores for dots."""

WHOLE = "diffusion_model."
"""What ComfyUI calls the network; before names that need no other prefix."""


@dataclass(frozen=True)
class ModuleNames:
    """Names of one class of network.

    Attributes:
        comfyui: Prefix of ComfyUI's names; None where it publishes none.
        kohya: Whether kohya's tools know the class.
        renames: (regular expression, replacement) from diffusers' names to those of the model's authors.
    """

    comfyui: str | None = None
    kohya: bool = False
    renames: Sequence[Sequence[str]] = field(default=())

    @property
    def flat(self) -> bool:
        """Whether ComfyUI's names have underscores for dots."""
        return self.comfyui is not None and self.comfyui.endswith("_")

    def of_authors(self, module: str) -> str:
        """Return the authors' name of a module of diffusers'."""
        for pattern, name in self.renames:
            module = re.sub(pattern, name, module)
        return module

    def for_comfyui(self, module: str) -> str | None:
        """Return ComfyUI's name of a module; None where it has none for the class."""
        if self.comfyui is None:
            return None
        name = self.of_authors(module)
        if name.startswith(WHOLE):
            return name
        return self.comfyui + (name.replace(".", "_") if self.flat else name)

    def for_kohya(self, module: str) -> str | None:
        """Return the name that kohya's tools have for a module; None where they do not know the class."""
        return FLAT + self.of_authors(module).replace(".", "_") if self.kohya else None


def names_of(network_class: str) -> ModuleNames:
    """Return what is known of a class of network, by its name; nothing of most."""
    return _known().get(network_class, ModuleNames())


@functools.cache
def _known() -> Mapping[str, ModuleNames]:
    text = resources.files("alignment.policy.networks").joinpath("module_names.yaml").read_text(encoding="utf-8")
    return {name: ModuleNames(**told) for name, told in yaml.safe_load(text).items()}
