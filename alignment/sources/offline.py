"""Samples from a data file: winners to imitate, or samples with a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alignment.context import Context
from alignment.data.batches import Batch, Experience, Groups, Samples
from alignment.errors import ConfigError
from alignment.sources.base import Source, StepShape
from alignment.sources.from_files import encode_samples, first_pictures, labels, labels_as_scores


@dataclass(frozen=True)
class Offline(Source[Samples]):
    """Read (prompt, media) from the data file, with a label if it has one, and encode the media.

    The label is the credit: a number, or true and false for 1 and -1; a sample without one is wanted, with credit 1.
    Nothing is sampled or scored.

    Attributes:
        prompts: Records per step, over all processes.
        rows_per_group: Neighbouring records that objectives compare with each other (KTO's reference point is the mean
            over that many); 1 where none does.
    """

    prompts: int
    rows_per_group: int = 1
    media: ClassVar[tuple[str, ...]] = ("media",)
    produces: ClassVar[type[Batch]] = Samples

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.rows_per_group < 1 or self.prompts % self.rows_per_group:
            raise ConfigError(
                f"source.prompts must be a multiple of source.rows_per_group, both at least 1: got {self.prompts} and "
                f"{self.rows_per_group}"
            )

    def shape(self, rounds: int | None) -> StepShape:
        """Return a row for each record, and records compared with their neighbours."""
        return StepShape(self.prompts // self.rows_per_group, self.rows_per_group, self.prompts)

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Samples]:
        """Encode the records' samples."""
        batch = Samples(
            prompts=groups.prompts,
            seeds=ctx.draw.keys("offline", groups.ids),
            group=groups.ids // self.rows_per_group,
            chunk=ctx.policy.form.chunk(groups.prompts, groups.ids),
            x0=encode_samples(ctx, groups),
            advantage=labels(groups),
        )
        wanted = (ctx.world.gather(batch.advantage) > 0).float().mean().item()
        media, scores = first_pictures(ctx, groups), labels_as_scores(groups)
        return Experience(batch, {"data/wanted": wanted}, media, groups.prompts, scores)
