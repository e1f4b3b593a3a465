"""Where a step's experience comes from."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from alignment.context import Context
from alignment.credit.advantages.base import Advantage
from alignment.credit.structures.base import Structure
from alignment.data.batches import Batch, Experience, Groups
from alignment.fact import fact
from alignment.sources.scouting.scout import Scout
from reward_models.base import RewardModel
from samplers.dynamics.base import Dynamics
from samplers.windows.base import Window

B_co = TypeVar("B_co", bound=Batch, covariant=True)
T = TypeVar("T")

PREVIOUS = "previous"
"""The frozen copy of what the policy was one step before: that which sampled, where samples are stale."""


@dataclass(frozen=True)
class StepShape:
    """The size of a step's experience, over all processes.

    Attributes:
        groups: Groups of samples that are compared with each other.
        group_size: Samples made or read per group.
        rows: Rows of the batch.
        calls: Pipeline calls that sample; None: one per process. 0: nothing is sampled, or the number is not known.
    """

    groups: int
    group_size: int
    rows: int
    calls: int | None = 0

    @property
    def rows_per_group(self) -> int:
        """Rows of the batch that a group has."""
        return self.rows // self.groups


def calls_of(prompts: int, prompts_per_call: int | None) -> int | None:
    """Return the number of pipeline calls that so many prompts take; None: one per process."""
    return None if prompts_per_call is None else prompts // prompts_per_call


@runtime_checkable
class Source(Protocol[B_co]):
    """Turns the prompts of a step into a typed batch, without gradient.

    The facts below are read-only for others: a source has a field of that name, or a property where its field has
    another name.

    Attributes:
        home: Where `type:` in a config finds implementations.
        produces: The batch type.
        media: Names of the samples that each record of the data file holds; none where all samples are the policy's.
        prompts: Prompts per step, over all processes.
    """

    home: ClassVar[str] = "alignment.sources"
    produces: ClassVar[type[Batch]]
    media: ClassVar[tuple[str, ...]] = ()
    prompts: int

    @fact
    def reward(self) -> RewardModel | None:
        """What the samples are scored with; None where nothing is scored."""
        return None

    @fact
    def weights(self) -> str:
        """Which weights sample: "live", or the name of a frozen copy, which is then kept."""
        return "live"

    @fact
    def advantage(self) -> Advantage | None:
        """How scores become credit; None where there is no credit, or the source has a rule of its own."""
        return None

    @fact
    def structure(self) -> Structure | None:
        """What spreads the credit of a sample over its latent; None gives every position all of it."""
        return None

    @fact
    def dynamics(self) -> Dynamics | None:
        """The rule of its stochastic steps; None where the pipeline's own scheduler samples."""
        return None

    @fact
    def window(self) -> Window | None:
        """What chooses the stochastic, trained steps of a call; None where there are none."""
        return None

    @fact
    def scout(self) -> Scout | None:
        """Cheap samples that say which are made; None where every sample is."""
        return None

    @fact
    def overlap(self) -> bool | Literal["always"]:
        """Whether samples are scored while more are sampled; false where all are waited for."""
        return False

    @fact
    def stale(self) -> int:
        """Steps that the policy which samples may be behind the one that learns; 0 where no densities are stored."""
        return 0

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the frozen copies it samples with, or keeps."""
        return (*(() if self.weights == "live" else (self.weights,)), *((PREVIOUS,) if self.stale else ()))

    def shape(self, rounds: int | None) -> StepShape:
        """Return the size of a step; by default one sample per prompt, and one row per sample.

        Args:
            rounds: Denoising steps in a call; None where that is not known yet.

        Raises:
            WindowError: If its window has no step to train in so many.
        """
        return StepShape(self.prompts, 1, self.prompts)

    def small(self) -> Source[B_co]:
        """Return this source with its smallest possible step, for close checks; itself if it cannot be smaller."""
        return self

    def check_rounds(self, rounds: int) -> None:
        """Refuse a pipeline call of `rounds` denoising steps that this source cannot work with; by default none.

        Raises:
            ConfigError: If it cannot work with so many.
        """

    def __call__(self, ctx: Context, groups: Groups) -> Experience[B_co]:
        """Sample, score and credit this process's share of the step: `groups`."""
        ...

    def halves(self, ctx: Context, groups: Groups) -> Generator[None, None, Experience[B_co]]:
        """Do what a call does in two halves: sample and ask for scores up to the `yield`; wait for them and credit.

        By default all of it is done in the second half. Between the two the policy may have sampled for the next step,
        and it has learned nothing.
        """
        yield
        return self(ctx, groups)


def finished(halves: Generator[None, None, T]) -> T:
    """Go through what is left of the halves, and return what they return."""
    while True:
        try:
            next(halves)
        except StopIteration as end:
            return end.value
