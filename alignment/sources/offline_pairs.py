"""Preferences from a data file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alignment.context import Context
from alignment.data.batches import Batch, Experience, Groups, Pairs
from alignment.sources.base import Source
from alignment.sources.from_files import encode_samples, first_pictures, labels, labels_as_scores


@dataclass(frozen=True)
class OfflinePairs(Source[Pairs]):
    """Read (prompt, chosen, rejected) from the data file, with a label if it has one, and encode both sides.

    Both sides of a record have one shape, and are scaled and cut alike. The label says how much the chosen side is
    preferred; 1 where there is none. Nothing is sampled or scored.

    Attributes:
        prompts: Records per step, over all processes.
    """

    prompts: int
    media: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    produces: ClassVar[type[Batch]] = Pairs

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Pairs]:
        """Encode both sides of the records."""
        batch = Pairs(
            prompts=groups.prompts,
            seeds=ctx.draw.keys("pair", groups.ids),
            group=groups.ids,
            chunk=ctx.policy.form.chunk(groups.prompts, groups.ids),
            chosen=encode_samples(ctx, groups, 0),
            rejected=encode_samples(ctx, groups, 1),
            advantage=labels(groups),
        )
        return Experience(batch, {}, first_pictures(ctx, groups), groups.prompts, labels_as_scores(groups))
