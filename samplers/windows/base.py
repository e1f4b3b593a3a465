"""What a window is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

from samplers.errors import WindowError


@dataclass(frozen=True)
class Choice:
    """The steps of one pipeline call.

    Attributes:
        stochastic: Steps drawn from the SDE, ascending; all others are ODE steps.
        trained: Steps that are learned from, ascending; a subset of `stochastic`.
        branch: Whether the samples of a group part only at the one stochastic step.
        eligible: Steps that calls like this one may train, each as often as it may occur; empty means the trained ones.
    """

    stochastic: tuple[int, ...]
    trained: tuple[int, ...]
    branch: bool = False
    eligible: tuple[int, ...] = ()


@runtime_checkable
class Window(Protocol):
    """Chooses the stochastic and the trained steps.

    The last step is never in a window unless a window says otherwise: its noise stays in the picture, and in DanceGRPO
    and Flow-GRPO-Fast it is neither noised nor trained.
    """

    home: ClassVar[str] = "samplers.windows"

    def choose(self, rounds: int, step: int, chunk: int, generator: torch.Generator) -> Choice:
        """Return the choice for one pipeline call.

        Args:
            rounds: Denoising steps in a call.
            step: Index of the training step.
            chunk: Index of the call within the training step, counted over all processes.
            generator: Source of randomness of this call.

        Raises:
            WindowError: If the window has no step to train in a call of `rounds` steps.
        """
        ...


def trainable_rounds(rounds: int, drop_last: bool) -> list[int]:
    """Return the steps a window may choose from.

    Raises:
        WindowError: If there is none.
    """
    steps = list(range(rounds - 1 if drop_last else rounds))
    if not steps:
        raise WindowError(
            f"a window needs a step to train, but the pipeline takes {rounds} and the last one is left out: "
            "raise num_inference_steps"
        )
    return steps


def pick(steps: list[int], count: int, generator: torch.Generator) -> tuple[int, ...]:
    """Return `count` of `steps`, drawn without replacement, ascending."""
    order = torch.randperm(len(steps), generator=generator).tolist()
    return tuple(sorted(steps[i] for i in order[:count]))
