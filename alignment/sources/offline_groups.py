"""Preferences from a data file, as groups of two samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from alignment.context import Context
from alignment.data.batches import Batch, Experience, Groups, Samples
from alignment.sources.base import Source, StepShape
from alignment.sources.credited import repeat
from alignment.sources.from_files import encode_samples, first_pictures, labels, labels_as_scores

SIDES = 2


@dataclass(frozen=True)
class OfflineGroups(Source[Samples]):
    """Read (prompt, chosen, rejected) from the data file: both sides are samples, compared with each other.

    The chosen side has the record's label as credit, 1 where there is none, and the rejected side as much below 0. For
    objectives that learn from groups and not from pairs, such as `adpo` and `dgpo`. Nothing is sampled or scored.

    Attributes:
        prompts: Records per step, over all processes.
    """

    prompts: int
    media: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    produces: ClassVar[type[Batch]] = Samples

    def shape(self, rounds: int | None) -> StepShape:
        """Return a group of two for each record."""
        return StepShape(self.prompts, SIDES, SIDES * self.prompts)

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Samples]:
        """Encode both sides of the records, one after the other."""
        texts, group = repeat(groups.prompts, SIDES), groups.ids.repeat_interleave(SIDES)
        label = labels(groups)
        batch = Samples(
            prompts=texts,
            seeds=ctx.draw.keys("offline", torch.arange(SIDES) + SIDES * groups.ids[:, None]).flatten(),
            group=group,
            chunk=ctx.policy.form.chunk(texts, group),
            x0=torch.stack([encode_samples(ctx, groups, side) for side in range(SIDES)], dim=1).flatten(0, 1),
            advantage=torch.stack([label, -label], dim=1).flatten(),
        )
        return Experience(batch, {}, first_pictures(ctx, groups), groups.prompts, labels_as_scores(groups))
