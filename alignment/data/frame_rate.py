"""How fast the clips of a pipeline are to be played; rewards that judge motion need it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

EXPORTED = 10.0
"""Frames per second that diffusers' `export_to_video` writes by default."""

_ARGUMENTS = ("fps", "frame_rate", "target_fps")
"""What pipelines call the rate that they are asked for."""


def frame_rate(pipe: Any, said: float | None, call: Mapping[str, object]) -> float:
    """Return the frames per second of what a pipeline makes.

    That is `policy.fps`; else what the pipeline is called with, or its own default; else the rate of diffusers'
    `export_to_video`.

    Args:
        pipe: The pipeline.
        said: `policy.fps`.
        call: Arguments of its call.
    """
    defaults = {name: p.default for name, p in inspect.signature(type(pipe).__call__).parameters.items()}
    asked = [call.get(name) or defaults.get(name) for name in _ARGUMENTS]
    rates = (float(rate) for rate in (said, *asked) if isinstance(rate, int | float) and rate > 0)
    return next(rates, EXPORTED)
