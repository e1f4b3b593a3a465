"""Compiling a network, and whether there is anything to compile it with."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch

from alignment.errors import ConfigError
from alignment.policy.networks.compiling.compilations import COMPILATIONS

How = bool | Literal["blocks"]
"""Not at all, the network as one, or each kind of its blocks once."""
VARIANTS = 64
"""Graphs of one block at most; torch takes 8 and then runs it as it is written. With gradient and without, adapters on,
off or folded in, autocast or not, and shapes that vary or stay make more than that."""


def lacking_compiler(device: str) -> str | None:
    """Return what keeps torch from compiling for a kind of device here, and what to do; None where it can."""
    if device == "cuda":
        triton = importlib.util.find_spec("triton")
        return None if triton else "torch compiles for CUDA through triton, which is not installed: pip install triton"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return (
            "torch compiles for the CPU through a C++ compiler, and there is none: install g++ or clang++ (on Debian "
            "and Ubuntu: apt install g++), or name one in the environment's CXX"
        )
    return None


def compile_network(network: Any, how: How, backend: str = "inductor") -> None:
    """Let a network of diffusers compile itself when it is first called.

    Blocks are compiled for any number of rows and tokens at once; a network as one, for those of the first call, and
    for any once there are others.

    Args:
        network: The network.
        how: Whether, and how much of it at once.
        backend: What torch compiles with.

    Raises:
        ConfigError: If it does not say which of its blocks repeat.
    """
    if not how:
        return
    import torch._dynamo.config as dynamo_config
    import torch._functorch.config as functorch_config

    COMPILATIONS.count()
    dynamo_config.recompile_limit = VARIANTS
    # Checks of replay keep a graph for several backward passes, whose buffers compiled code would use again otherwise.
    functorch_config.donated_buffer = False
    if how != "blocks":
        network.compile(backend=backend)
        return
    kinds = set(network._repeated_blocks or ())
    if not kinds & {type(module).__name__ for module in network.modules()}:
        raise ConfigError(
            f"policy.compile: diffusers does not know which blocks of a {type(network).__name__} repeat; use true, "
            "which compiles it as one, or false"
        )
    network.compile_repeated_blocks(backend=backend, dynamic=True)


def running_eagerly() -> Any:
    """Return a context in which compiled networks run as they are written."""
    return torch.compiler.set_stance("force_eager")
