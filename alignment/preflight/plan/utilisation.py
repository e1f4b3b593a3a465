"""How much of a GPU a run uses: the FLOPs of its plan, over the time that its steps take, over the GPU's peak."""

from __future__ import annotations

import os

import torch

from alignment.config.run import Run
from alignment.errors import VisalignError
from alignment.preflight.plan.gpus import product


def least_seconds(run: Run, gpus: int) -> float | None:
    """Return the seconds of a step on this machine's GPUs, were each at its peak all the time.

    Returns:
        None where the run uses no GPU, where this kind of GPU is not known, or where the run cannot be planned; and on
        all processes but the one that records.
    """
    if os.environ.get("RANK", "0") != "0" or run.device == "cpu" or not torch.cuda.is_available():
        return None
    return seconds_at_peak(run, torch.cuda.get_device_name(), gpus)


def seconds_at_peak(run: Run, name: str, gpus: int) -> float | None:
    """Return the seconds of a step on GPUs of a driver's `name`, each at its peak all the time; None if unknown."""
    kind = product(name)
    if kind is None:
        return None
    from alignment.preflight.plan.plan import Setup, plan  # where there is a GPU, and not to say that there is none

    try:
        made = plan(run, Setup(kind, gpus, peak_fraction=1.0))
    except VisalignError:  # there are pipelines and objectives that are trained and cannot be planned
        return None
    return sum(made.seconds.values())
