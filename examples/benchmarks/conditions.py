"""What a number was measured under: without it a number says little."""

from __future__ import annotations

import os

import torch

from alignment.reports import environment


def processor() -> str:
    """Return the processor's name, and the instructions that torch uses on it."""
    return f"{environment.processor()} ({torch.backends.cpu.get_cpu_capability()})"


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
