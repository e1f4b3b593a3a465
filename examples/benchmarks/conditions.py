"""What a number was measured under: without it a number says little."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def processor() -> str:
    """Return the processor's name, and the instructions that torch uses on it."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def load_average() -> float:
    """Return how many processes wanted to run, on average over the last minute."""
    return os.getloadavg()[0]


def conditions() -> dict[str, object]:
    """Return the machine, the threads and the load now, by name."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": load_average(),
    }


def said(under: dict[str, object]) -> str:
    """Return conditions in a line."""
    return (
        f"{under['processor']}, {under['cores']} cores, {under['threads']} threads, load {under['load']:.1f} before, "
        f"torch {under['torch']}"
    )
