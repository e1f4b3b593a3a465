"""Whose fault an error is: the innermost frame says it that is neither of torch nor of what torch calls around."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reward_models.errors import RewardError, users_code
from reward_models.foreign import ForeignCode, globals_kept


class Refused(Exception):
    """What is raised in place of a stranger's error."""


def module(name: str, code: str) -> dict[str, Any]:
    """Return the names that a module of that name defines."""
    names: dict[str, Any] = {"__name__": name, "torch": torch, "TorchDispatchMode": TorchDispatchMode}
    exec(code, names)
    return names


THEIRS = module("stranger.network", "def run(z, then=None):\n    return then(z) if then else z.to('cpu')\n")
OURS = module(
    "alignment.counter",
    "class Counts(TorchDispatchMode):\n"
    "    def __torch_dispatch__(self, func, types, args=(), kwargs=None):\n"
    "        return func(*args, **(kwargs or {}))\n"
    "def bug(z):\n"
    "    return z.no_such_name\n",
)


def foreign() -> ForeignCode:
    return ForeignCode(lambda error: Refused(str(error)))


def test_what_strangers_raise_is_theirs() -> None:
    with pytest.raises(Refused, match="no data"), foreign():
        THEIRS["run"](torch.zeros(1, device="meta"))


def test_who_only_watches_an_operation_is_not_at_fault() -> None:
    with pytest.raises(Refused, match="no data"), foreign(), OURS["Counts"]():
        THEIRS["run"](torch.zeros(1, device="meta"))


def test_a_bug_of_ours_passes_even_beneath_a_stranger() -> None:
    with pytest.raises(AttributeError, match="no_such_name"), foreign():
        THEIRS["run"](torch.zeros(1), then=OURS["bug"])


def test_what_is_kept_can_be_asked_for_whatever_was_set_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch raises where one of its own settings is asked for in another way than it was set."""
    before, gone = torch.backends.mkldnn.matmul.fp32_precision, tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        with globals_kept("nothing"):
            _ = torch.ones(2, 2) @ torch.ones(2, 2)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_ctrl_c_is_for_the_program_unless_the_program_asked_for_signals() -> None:
    interrupt = module("stranger.scorer", "def run():\n    raise KeyboardInterrupt\n")["run"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
    try:
        with pytest.raises(KeyboardInterrupt), ForeignCode(Refused):
            interrupt()
        with pytest.raises(KeyboardInterrupt), users_code("a function"):
            interrupt()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a run does, with a handler of its own
        with pytest.raises(Refused), ForeignCode(Refused):
            interrupt()
        with pytest.raises(RewardError, match="a function raised KeyboardInterrupt"), users_code("a function"):
            interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
