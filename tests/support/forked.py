"""Programs in processes of their own that start at once: forked from one that has imported what they import.

Importing torch and diffusers takes seconds, in which nothing of ours is tested. Whatever depends on a process that is
fresh in every way (imports, the interpreter's own options) belongs into `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.imported"])


def start(module: str, words: Sequence[str], environment: Mapping[str, str], log: Path) -> ForkServerProcess:
    """Start `python -m MODULE WORDS` in the repository, with all that it prints added to `log`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # for the process that is forked from, which the first call starts
    try:
        process = _context.Process(target=_run, args=(module, list(words), dict(environment), str(log)), daemon=True)
        process.start()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return process


def _run(module: str, words: list[str], environment: dict[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
