"""What operators return for tensors without numbers, remembered.

Torch finds the shape of most outputs in Python, anew for each block of a network that has sixty of a kind.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

_known: dict[Hashable, tuple[_Output, ...] | None] = {}


class _NotKnown(Exception):
    """An argument is none that the output's shape alone depends on."""


@dataclass(frozen=True)
class _Output:
    """The shape of a tensor that has a storage of its own, and fills it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=META)


class Remembering(TorchDispatchMode):
    """Makes meta tensors of meta tensors from memory where it can, while it is entered.

    The operator is called in the method that torch calls around it, so that what it raises is not taken for an error of
    ours; see `reward_models.foreign`.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what `func(*args, **kwargs)` does."""
        named, tensors = kwargs or {}, list[Tensor]()
        key = _key(func, args, named, tensors)
        outputs = _known.get(key) if tensors else None
        if outputs is not None:
            made = tuple(output.make() for output in outputs)
            return made if len(func._schema.returns) > 1 else made[0]
        out = func(*args, **named)
        if tensors and key not in _known:
            _known[key] = _outputs(out, tensors)
        return out


def _key(func: Any, args: tuple[Any, ...], named: Mapping[str, Any], tensors: list[Tensor]) -> Hashable:
    """Return what decides the output of an operator, and add the tensors among its arguments to `tensors`.

    None are added where an output is not to be remembered.
    """
    found: list[Tensor] = []
    try:
        if not _makes_anew(func):
            return None
        key = func, _described(args, found), _described([*named.items()], found)
    except _NotKnown:
        return None
    tensors += found
    return key


@functools.cache
def _makes_anew(func: Any) -> bool:
    """Return whether an operator neither writes into its arguments nor returns views of them, by its schema."""
    schema = func._schema
    returned = all(str(returned.type) == "Tensor" for returned in schema.returns)
    return returned and not any(argument.alias_info for argument in schema.arguments)


def _described(value: Any, tensors: list[Tensor]) -> Hashable:
    """Return all that a shape can depend on, and add the tensors among it to `tensors`."""
    if type(value) in (Tensor, nn.Parameter):
        if value.device != META or value.is_complex():  # whose conjugation is a flag
            raise _NotKnown
        tensors.append(value)
        return value.shape, value.stride(), value.storage_offset(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_described(part, tensors) for part in value)
    if not isinstance(value, _PLAIN):
        raise _NotKnown
    return type(value), value  # 1, 1.0 and True are equal, and make other dtypes


def _outputs(out: Any, given: list[Tensor]) -> tuple[_Output, ...] | None:
    """Return the shapes of what came out; null where it is not made anew each time."""
    tensors = out if isinstance(out, tuple) else (out,)
    used = {z.untyped_storage()._cdata for z in given}  # pyright: ignore[reportPrivateUsage]
    outputs = []
    for z in tensors:
        if type(z) is not Tensor or z.device != META or z.is_complex() or z.storage_offset():
            return None
        storage = z.untyped_storage()
        output = _Output(tuple(z.shape), z.stride(), z.dtype)
        if storage._cdata in used or output.make().untyped_storage().nbytes() != storage.nbytes():  # pyright: ignore[reportPrivateUsage]
            return None
        used.add(storage._cdata)  # pyright: ignore[reportPrivateUsage]
        outputs.append(output)
    return tuple(outputs)
