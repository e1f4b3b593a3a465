"""What is minimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Batch
from alignment.fact import fact
from samplers.paths.times import Times

B_contra = TypeVar("B_contra", bound=Batch, contravariant=True)


@dataclass(frozen=True)
class Loss:
    """A loss for each row; the runtime averages over the rows of the whole update, on all processes.

    Attributes:
        per_row: `[n]` float32 with graph. An objective that learns in K passes gives each pass 1/K of the row's loss.
        metrics: Numbers for the record, each a tensor of any shape without graph; means are taken over the update,
            except where the name ends in `_max` or `_min`.
    """

    per_row: Tensor
    metrics: Mapping[str, Tensor]


Learn = Callable[[Loss], None]
"""Takes a loss and runs its backward pass at once, so that no graph outlives its step."""


@runtime_checkable
class Objective(Protocol[B_contra]):
    """Turns rows of experience into losses.

    The facts below are read-only for others: an objective has a field of that name, or a property.

    Attributes:
        home: Where `type:` in a config finds implementations.
        consumes: The batch type.
        signed: Whether the gradient turns with the credit where the policy equals its frozen copies: zero credit gives
            zero, opposite credit the opposite. False where credit weighs what is imitated, or sets a target.
        snapshots: Frozen copies of the trained weights it reads: "reference", "behaviour" or "ema".
        spatial: Whether it takes (and needs) an advantage that is a map over the latent.
        whole_groups: Whether a row's loss depends on the other rows of its group, so that a group is learned from as
            a whole: no update and no microbatch splits one.
        differentiates: Whether it takes the reward's own gradient, which then has to reach the pixels.
        takes_ratios: Whether it weighs what was sampled by likelihood ratios to the policy that sampled it, from
            densities in the batch; then that may be the policy of an earlier step.
        headline: The one metric that is shown beside the reward at every step.
    """

    home: ClassVar[str] = "alignment.objectives"
    consumes: ClassVar[type[Batch]]
    signed: ClassVar[bool] = True
    spatial: ClassVar[bool] = False
    whole_groups: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False
    takes_ratios: ClassVar[bool] = False
    headline: ClassVar[str] = "reward/mean"

    @fact
    def clip(self) -> float | None:
        """How far a likelihood ratio may go from 1; None where nothing is clipped."""
        return None

    @fact
    def kl(self) -> float:
        """Weight of the distance to a frozen copy; 0 where no field of that name can switch it off."""
        return 0.0

    @fact
    def channels(self) -> Literal["sum", "mean"]:
        """What is done with the log densities of a position's channels before a ratio is taken."""
        return "mean"

    @fact
    def times(self) -> Times | None:
        """Distribution of the times to which clean samples are noised; None where none are."""
        return None

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the frozen copies it reads."""
        ...

    def check_rounds(self, rounds: int) -> None:
        """Refuse a pipeline call of `rounds` denoising steps that this objective cannot work with; by default none.

        Raises:
            ConfigError: If it cannot work with so many.
        """

    def __call__(self, ctx: Context, batch: B_contra, learn: Learn) -> None:
        """Evaluate the policy on one microbatch and pass every loss to `learn`."""
        ...
