"""What a loaded reward model is, in a few letters: its description, its weights and its code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
import xxhash
from torch import nn

from reward_models.base import Loaded


def fingerprint(loaded: Loaded) -> str:
    """Return 32 hexadecimal digits that change with the model.

    They are made of the description (`repr`: file names, prompts, sizes of preprocessing), the bytes of every network
    the scorer holds, and the source of the modules that description, scorer and functions come from; for a model made
    of others, of theirs too. What a scorer reads elsewhere while it scores is not seen.
    """
    digest = xxhash.xxh3_128(repr(loaded.model).encode())
    packages = {_package(kind) for kind in (Loaded, type(loaded.model), type(loaded.scorer))}
    _add(digest, loaded, packages, {})
    return digest.hexdigest()


def _add(digest: xxhash.xxh3_128, thing: object, packages: set[str], seen: dict[int, object]) -> None:
    """Add what `thing` is; attributes are followed through classes of `packages` alone, not through libraries."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing  # held, because the id of what is gone is given to something else
    if isinstance(thing, nn.Module):
        _add_weights(digest, thing)
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            digest.update(repr(key).encode())
            _add(digest, value, packages, seen)
    elif isinstance(thing, Sequence) and not isinstance(thing, str | bytes):
        for value in thing:
            _add(digest, value, packages, seen)
    elif inspect.isfunction(thing):
        digest.update(_source(thing))
    elif _package(type(thing)) in packages and hasattr(thing, "__dict__"):
        digest.update(_source(type(thing)))
        _add(digest, dict(sorted(vars(thing).items())), packages, seen)


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _source(thing: object) -> bytes:
    """Return the source of the module that `thing` comes from; nothing where there is none, as in a console."""
    module = inspect.getmodule(thing)
    try:
        return b"" if module is None else inspect.getsource(module).encode()
    except (OSError, TypeError):
        return b""


def _add_weights(digest: xxhash.xxh3_128, network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
