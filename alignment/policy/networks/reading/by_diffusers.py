"""Adapters in the names of a model's authors, as diffusers renames them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import Tensor

from alignment.errors import ConfigError
from alignment.policy.networks.reading.names import NAME
from reward_models.foreign import ForeignCode, first_line

_ALPHA = ".alpha"
_SAID = 200
"""Characters of what diffusers says."""


@dataclass(frozen=True)
class ByDiffusers:
    """diffusers' own reading of a file for one network.

    Attributes:
        kind: Class of the pipeline.
        config: Configuration of the network.
        component: Its name.
    """

    kind: Any
    config: Any
    component: str

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under diffusers' names, and under their own those that it leaves out without a word.

        Which those are is told by a second reading, in which each tensor is full of a number of its own.

        Raises:
            ConfigError: If diffusers cannot read them.
        """
        numbers = {name: k for k, name in enumerate(tensors, 1) if not name.endswith(_ALPHA)}
        numbered = {name: torch.full(tensors[name].shape, float(k)) for name, k in numbers.items()}
        for name in tensors.keys() - numbers:  # at which nothing is scaled
            beside = (z for other, z in tensors.items() if other in numbers and _below(other, name) and z.ndim > 1)
            numbered[name] = torch.tensor(float(min((min(z.shape[:2]) for z in beside), default=1)))
        came = {number for z in self._read(numbered).values() for number in z.unique().tolist()}
        left = [name for name, number in numbers.items() if number not in came]
        scales = [name for name in tensors.keys() - numbers if any(_below(other, name) for other in left)]
        return self._read(dict(tensors)) | {name: tensors[name] for name in (*left, *scales)}

    def _read(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {"unet_config": self.config} if self.component == "unet" else {}
        refused = lambda error: ConfigError(_shortened(error))  # noqa: E731
        with ForeignCode(refused):
            made: Any = self.kind.lora_state_dict(tensors, **named)
        state, alphas = made if isinstance(made, tuple) else (made, {})
        with ForeignCode(refused):
            state = convert_unet_state_dict_to_peft(state)
            # An alpha has the name of its matrix, where it has not that of the module.
            scales = convert_unet_state_dict_to_peft({k.removesuffix(_ALPHA): v for k, v in (alphas or {}).items()})
        for name, alpha in scales.items():
            matrix = NAME.fullmatch(name)
            module = name if matrix is None else matrix["module"]
            state[f"{module}{_ALPHA}"] = torch.tensor(float(alpha))
        return state


def _below(name: str, alpha: str) -> bool:
    """Say whether a tensor is of the module of an alpha."""
    return name.startswith(f"{alpha.removesuffix(_ALPHA)}.")


def _shortened(error: BaseException) -> str:
    """Return what diffusers says in one line, without what it lists."""
    said = first_line(error)
    return said if len(said) <= _SAID else f"{type(error).__name__}, and a list of names"
