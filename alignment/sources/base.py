"""Where a step's experience comes from."""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from alignment.context import Context
from alignment.credit.structures.base import Structure
from alignment.data.batches import Batch, Experience, Groups
from reward_models.base import RewardModel

B_co = TypeVar("B_co", bound=Batch, covariant=True)


@runtime_checkable
class Source(Protocol[B_co]):
    """Turns the prompts of a step into a typed batch, without gradient.

    Attributes:
        home: Where `type:` in a config finds implementations.
        produces: The batch type.
        media: Names of the samples that each record of the data file brings to learn from; none where all are sampled.
        prompts: Prompts a step, over all processes.
        reward: What the samples are scored with; None where nothing is scored.
        weights: Which weights sample: "live", or the name of a frozen copy, which is then kept.
        structure: What spreads the credit of a sample over its latent; null gives all of it everywhere.
    """

    home: ClassVar[str] = "alignment.sources"
    produces: ClassVar[type[Batch]]
    media: ClassVar[tuple[str, ...]] = ()
    prompts: int
    reward: RewardModel | None
    weights: str = "live"
    structure: Structure | None = None

    @property
    def snapshots(self) -> tuple[str, ...]:
        """Names of the frozen copies it samples with, or keeps."""
        return () if self.weights == "live" else (self.weights,)

    @property
    def rows_per_prompt(self) -> int | None:
        """Rows of the batch a prompt, where that is no matter of groups and windows; None where it is."""
        return None

    def check_rounds(self, rounds: int) -> None:
        """Refuse a pipeline call of `rounds` denoising steps; nothing, unless a source has a say in it.

        Raises:
            ConfigError: If it cannot work with so many.
        """

    def __call__(self, ctx: Context, groups: Groups) -> Experience[B_co]:
        """Sample, score and credit this process's share of the step: `groups`."""
        ...
