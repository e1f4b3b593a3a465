"""What the user of a sampler has to mend: another dynamics, another window, another scheduler."""

from __future__ import annotations

from typing import ClassVar, Literal


class SamplingError(ValueError):
    """A dynamics that cannot do what is asked of it on this grid.

    Attributes:
        about: What is to be changed.
    """

    about: ClassVar[Literal["dynamics", "window", "scheduler"]] = "dynamics"


class WindowError(SamplingError):
    """A window without a step to train in a call of so many steps."""

    about = "window"


class SchedulerError(SamplingError):
    """A scheduler whose forward process or grid cannot be read, or whose steps do not come out again."""

    about = "scheduler"


def without_noise(dynamics: object, k: int) -> SamplingError:
    """Return what is wrong with training step `k`, to which `dynamics` gives no noise."""
    return SamplingError(
        f"step {k} is to be trained but its std is 0 under {type(dynamics).__name__}: it would have no gradient. Leave "
        "it out of the window (the last step has no noise under ddim and coefficient_preserving), or choose another "
        "dynamics"
    )
