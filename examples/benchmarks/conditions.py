"""What a number was measured under: without it a number says little."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch

from alignment.reports import environment

ROOT = Path(__file__).parents[2]


def processor() -> str:
    """Return the processor's name, and the instructions that torch uses on it."""
    return f"{environment.processor()} ({torch.backends.cpu.get_cpu_capability()})"


def code() -> str:
    """Return which code runs, as git tells it, and on which torch."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return f"code {told.stdout.strip() or 'without a commit'}, torch {torch.__version__}"


def load_average() -> float:
    """Return how many processes wanted to run, on average over the last minute."""
    return os.getloadavg()[0]


def conditions() -> dict[str, object]:
    """Return the machine, the threads and the load now, by name."""
    machine = environment.environment()
    shown = {name: machine[name] for name in ("cores", "threads")}
    return {"processor": processor(), **shown, "torch": torch.__version__, "load": load_average()}


def said(under: dict[str, object]) -> str:
    """Return conditions in a line."""
    return (
        f"{under['processor']}, {under['cores']} cores, {under['threads']} threads, load {under['load']:.1f} before, "
        f"torch {under['torch']}"
    )
