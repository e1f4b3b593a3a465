"""How fast the clips of a pipeline are meant to be played: rewards that judge motion have to know."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

EXPORTED = 10.0
"""Frames per second that diffusers' `export_to_video` writes where it is not told another number."""

_ARGUMENTS = ("fps", "frame_rate", "target_fps")
"""What pipelines call the rate that they are asked for."""


def frame_rate(pipe: Any, said: float | None, call: Mapping[str, object]) -> float:
    """Return the frames per second of what a pipeline makes.

    That is what the user said; else what the pipeline is called with, or calls itself with; else what a user gets who
    exports the clip as diffusers' documentation does.

    Args:
        pipe: The pipeline.
        said: `policy.fps`.
        call: Arguments of its call.
    """
    defaults = {name: p.default for name, p in inspect.signature(type(pipe).__call__).parameters.items()}
    asked = [call.get(name) or defaults.get(name) for name in _ARGUMENTS]
    rates = (float(rate) for rate in (said, *asked) if isinstance(rate, int | float) and rate > 0)
    return next(rates, EXPORTED)
