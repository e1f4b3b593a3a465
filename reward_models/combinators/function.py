"""Any Python function as a reward."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from types import BuiltinFunctionType, FunctionType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from reward_models.base import Media, RewardModel, Rewards
from reward_models.errors import RewardError, users_code

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Function(RewardModel):
    """Score with a function of the pixels and the prompts.

    The function is called as `function(pixels, prompts)` with pixels `[B, F, 3, H, W]` in [0, 1] and B texts, without
    gradients, and returns B numbers: a list, an array or a tensor. NaN means that a sample could not be scored; the
    sample is then left out. Anything else that is not a finite number is an error.

    Attributes:
        call: "package.module:function", importable from where the program is started. In Python, the function itself
            works too if it is defined at the top of a module, script or notebook; its name is what is kept.
    """

    call: str | Callable[[Tensor, Sequence[str]], object]

    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.call, str):
            object.__setattr__(self, "call", _name_of(self.call))

    def __str__(self) -> str:
        """Return the name of the user's own function."""
        return f"function {self.call}"

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse a function that cannot be imported."""
        self._found()

    def load(self, *, device: torch.device) -> _FunctionScorer:
        """Import the function.

        Raises:
            RewardError: If `call` names nothing that can be imported and called.
        """
        return _FunctionScorer(str(self.call), self._found())

    def _found(self) -> Callable[[Tensor, Sequence[str]], object]:
        module, colon, name = str(self.call).partition(":")
        if not (module and colon and name):
            raise RewardError(f"function: call is 'package.module:function', got {self.call!r}")
        with users_code(f"function {self.call}: importing {module}"):
            there = vars(importlib.import_module(module))
        if name not in there:
            raise RewardError(f"function {self.call}: the module {module} has no {name}")
        found = there[name]
        if not callable(found):
            raise RewardError(f"function {self.call}: this is a {type(found).__name__}, not a function")
        return found


def _name_of(function: Callable[[Tensor, Sequence[str]], object]) -> str:
    """Return the "module:function" under which a function is found again.

    Raises:
        RewardError: If there is none: it is made inside another function, or is not a plain function.
    """
    if not isinstance(function, FunctionType | BuiltinFunctionType):
        raise RewardError(
            f"function: call is a {type(function).__name__}; give a function, or its name as 'package.module:function'"
        )
    module, name = function.__module__, function.__qualname__
    if vars(sys.modules.get(module, function)).get(name) is not function:
        raise RewardError(
            f"function {module}:{name}: nothing can import it by this name, so no config can hold it; write it with "
            "`def` at the top of a file or a notebook"
        )
    return f"{module}:{name}"


@dataclass(frozen=True)
class _FunctionScorer:
    name: str
    function: Callable[[Tensor, Sequence[str]], object]

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        """Score `media`.

        Raises:
            RewardError: If the function raised, or returned something other than one number per sample.
        """
        with users_code(f"function {self.name}"), torch.no_grad():
            answer = self.function(media.pixels.clone(), prompts)  # it may write there, and others look next
        numbers = self._numbers(answer, len(media))
        return Rewards(torch.tensor(numbers, dtype=torch.float32, device=media.pixels.device))

    def _numbers(self, answer: object, count: int) -> list[float]:
        try:
            items = answer.tolist() if isinstance(answer, Tensor | np.ndarray) else answer
        except RuntimeError as error:
            raise RewardError(f"function {self.name} returned a tensor without numbers: {error}") from error
        if not isinstance(items, Sequence) or isinstance(items, str | bytes):
            raise RewardError(f"function {self.name} returned a {type(answer).__name__}, expected {count} numbers")
        if isinstance(answer, Tensor | np.ndarray) and answer.ndim != 1:
            raise RewardError(
                f"function {self.name} returned an array of shape {list(answer.shape)}, expected [{count}]: one number "
                "per sample, without further axes"
            )
        if len(items) != count:
            raise RewardError(f"function {self.name} returned {len(items)} numbers for {count} samples")
        numbers: list[Any] = [_number(item) for item in items]
        for row, number in enumerate(numbers):
            if not issubclass(type(number), Real) or abs(number) > _LARGEST:
                raise RewardError(f"function {self.name} returned {number!r} for sample {row}, not a finite number")
        return [float(number) for number in numbers]


def _number(item: object) -> object:
    """Return the number in a tensor that holds one; anything else as it is."""
    return item.item() if isinstance(item, Tensor) and item.ndim == 0 and not item.is_meta else item
