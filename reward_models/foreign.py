"""Other people's code, and whose fault it is when it raises."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch

OURS = {"samplers", "reward_models", "alignment", "evals"}
NEUTRAL = {"torch", *sys.stdlib_module_names}
"""They work for whoever calls them, so their frames say nothing about who is at fault."""

OBSERVES = {"__torch_function__", "__torch_dispatch__"}
"""So do methods that torch calls around an operation, to count it for one."""


class ForeignCode:
    """Raises an error of ours in place of what other people's code raises within the `with` block.

    What our own code raises passes unchanged, whether it meant to (errors of our own classes) or has a bug: nobody may
    choose a fallback because of it. So does running out of memory, which says nothing about the code. Whose error it
    is, the innermost frame says that is not of torch or the standard library. The block itself should hold nothing but
    the call: what fails there failed to be called.
    """

    def __init__(self, make: Callable[[BaseException], Exception], calls_back: str = "") -> None:
        """Prepare for errors.

        Args:
            make: Makes the error that is raised.
            calls_back: A module of ours that the other code calls and which calls none of it; what is raised beneath is
                never the other code's.
        """
        self._make, self._calls_back = make, calls_back

    def __enter__(self) -> ForeignCode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Other people's code does not decide when the program ends; who sits at the keyboard does.
        if error is None or from_the_keyboard(error) or out_of_memory(error):
            return
        if self._is_theirs(error, trace):
            raise self._make(error) from error

    def _is_theirs(self, error: BaseException, trace: TracebackType | None) -> bool:
        if _package(type(error).__module__) in OURS:
            return False
        within = None if trace is None else trace.tb_next
        frames = [frame for frame, _ in traceback.walk_tb(within) if frame.f_code.co_name not in OBSERVES]
        modules = [str(frame.f_globals.get("__name__")) for frame in frames]
        acting = [name for name in modules if _package(name) not in NEUTRAL]
        return self._calls_back not in modules and (not acting or _package(acting[-1]) not in OURS)


def _set_device(device: torch.device) -> None:
    # Naming the CPU, which is the default, would put a layer between every operation and torch.
    torch.set_default_device(None if device.type == "cpu" else device)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed, and nothing relative to it was there to be used
        return None


def _go_to(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


_GLOBAL: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_device),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "current folder": (_folder, _go_to),
}
"""What code may set for the whole process, with how to ask for it and to set it. How precisely float32 is multiplied is
not among it: torch has two ways to say that, and raises where it is asked in the one after it was told in the other."""


@contextmanager
def globals_kept(what: object) -> Iterator[None]:
    """Put back what the code in the block sets for the whole process, and warn of it: others would compute otherwise.

    Args:
        what: Names the code.
    """
    before = {name: ask() for name, (ask, _) in _GLOBAL.items()}
    try:
        yield
    finally:
        for name, (ask, put) in _GLOBAL.items():
            if (now := ask()) != before[name]:
                put(before[name])
                warnings.warn(
                    f"{what} set the {name} of the process to {now}; it is {before[name]} again", stacklevel=3
                )


def _package(module: str) -> str:
    return module.partition(".")[0]


def from_the_keyboard(error: BaseException) -> bool:
    """Return whether an error is Python's answer to Ctrl-C, given in the main thread, unless asked otherwise."""
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and interrupts and main


_NO_ROOM = ("out of memory", "defaultcpuallocator", "cannot allocate memory")
"""How a refused allocation reads: OutOfMemoryError on devices, a plain RuntimeError from the CPU's allocator."""


def first_line(error: BaseException, silent: str = "") -> str:
    """Return the first line of what an error says, without a full stop; `silent` or its class where it has none."""
    return (str(error).strip() or silent or type(error).__name__).splitlines()[0].rstrip(". ")


def what_ran_out(error: BaseException) -> str:
    """Return the first line of an error of memory that ran out."""
    return first_line(error, "no more to be had")[:200]


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a device or in the machine."""
    no_room = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_ROOM)
    return no_room or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
