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

    What others want to know of an objective it says here: a field of that name says it, or a property does.

    Attributes:
        home: Where `type:` in a config finds implementations.
        consumes: The batch type.
        signed: Whether credit pushes: none of it gives no gradient, and the opposite gives the opposite one, at the
            weights that were compared with. False where credit only weighs what is imitated, or sets a target.
        snapshots: Frozen copies of the trained weights it reads: "reference", "behaviour" or "ema".
        spatial: Whether it takes an advantage that is a map over the latent, and needs one.
        whole_groups: Whether a row's loss depends on the other rows of its group, so that a group is learned from as
            a whole: no update and no microbatch splits one.
        differentiates: Whether it takes the reward's own gradient, which then has to reach the pixels.
        headline: The metric that says in one number how learning goes, shown beside the reward at every step.
    """

    home: ClassVar[str] = "alignment.objectives"
    consumes: ClassVar[type[Batch]]
    signed: ClassVar[bool] = True
    spatial: ClassVar[bool] = False
    whole_groups: ClassVar[bool] = False
    differentiates: ClassVar[bool] = False
    headline: ClassVar[str] = "reward/mean"

    @fact
    def clip(self) -> float | None:
        """How far a likelihood ratio may go from 1; None where nothing is clipped."""
        return None

    @fact
    def kl(self) -> float:
        """Weight of the distance to a frozen copy; above 0 only where a field of that name can switch it off."""
        return 0.0

    @fact
    def channels(self) -> Literal["sum", "mean"]:
        """What is done with the log densities of a position's channels before a ratio is taken."""
        return "mean"

    @fact
    def times(self) -> Times | None:
        """Distribution of the times to which clean samples are noised; None where they are not."""
        return None

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the frozen copies it reads."""
        ...

    def check_rounds(self, rounds: int) -> None:
        """Refuse a pipeline call of `rounds` denoising steps; nothing, unless an objective has a say in it.

        Raises:
            ConfigError: If it cannot work with so many.
        """

    def __call__(self, ctx: Context, batch: B_contra, learn: Learn) -> None:
        """Evaluate the policy on one microbatch and hand every loss to `learn`."""
        ...
