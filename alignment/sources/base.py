"""Where a step's experience comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from alignment.context import Context
from alignment.credit.advantages.base import Advantage
from alignment.credit.structures.base import Structure
from alignment.data.batches import Batch, Experience, Groups
from alignment.fact import fact
from reward_models.base import RewardModel
from samplers.dynamics.base import Dynamics
from samplers.windows.base import Window

B_co = TypeVar("B_co", bound=Batch, covariant=True)


@dataclass(frozen=True)
class StepShape:
    """How large the experience of a step is, over all processes.

    Attributes:
        groups: Groups of samples that are compared with each other.
        group_size: Samples that are made or read for each.
        rows: Rows of the batch.
        calls: Pipeline calls that sample; None: one a process. 0: nothing is sampled, or nobody says in how many.
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
    """Return in how many pipeline calls so many prompts are sampled; None: in one a process."""
    return None if prompts_per_call is None else prompts // prompts_per_call


@runtime_checkable
class Source(Protocol[B_co]):
    """Turns the prompts of a step into a typed batch, without gradient.

    What others want to know of a source it says here: a field of that name says it, or a property does where its
    field has another name.

    Attributes:
        home: Where `type:` in a config finds implementations.
        produces: The batch type.
        media: Names of the samples that each record of the data file brings to learn from; none where all are sampled.
        prompts: Prompts a step, over all processes.
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
        """How scores become credit; None where they do not, or by a rule of the source's own."""
        return None

    @fact
    def structure(self) -> Structure | None:
        """What spreads the credit of a sample over its latent; None gives all of it everywhere."""
        return None

    @fact
    def dynamics(self) -> Dynamics | None:
        """The rule of its stochastic steps; None where the pipeline's own scheduler samples."""
        return None

    @fact
    def window(self) -> Window | None:
        """What chooses the steps of a call that are stochastic and trained; None where nothing does."""
        return None

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the frozen copies it samples with, or keeps."""
        return () if self.weights == "live" else (self.weights,)

    def shape(self, rounds: int | None) -> StepShape:
        """Return how large a step is; by default each prompt has one sample, and that one row.

        Args:
            rounds: Denoising steps in a call; None where that is not known yet.

        Raises:
            WindowError: If its window has no step to train in so many.
        """
        return StepShape(self.prompts, 1, self.prompts)

    def small(self) -> Source[B_co]:
        """Return the source with a step as small as it can be, for a close look; as it is where it cannot be."""
        return self

    def check_rounds(self, rounds: int) -> None:
        """Refuse a pipeline call of `rounds` denoising steps; nothing, unless a source has a say in it.

        Raises:
            ConfigError: If it cannot work with so many.
        """

    def __call__(self, ctx: Context, groups: Groups) -> Experience[B_co]:
        """Sample, score and credit this process's share of the step: `groups`."""
        ...
