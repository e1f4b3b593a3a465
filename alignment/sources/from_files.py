"""What sources that learn from the samples of a data file share."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.context import Context
from alignment.data.batches import Groups
from reward_models.base import Media, Rewards

SHOWN = 32
"""Samples of a step that people may want to see; a step may have thousands."""


def encode_samples(ctx: Context, groups: Groups, side: int = 0) -> Tensor:
    """Return the latents of one sample of each record, `[P, *latent]` float32."""
    return ctx.policy.latents([example.media[side] for example in groups.examples]).to(ctx.policy.storage)


def labels(groups: Groups) -> Tensor:
    """Return the records' labels, `[P]` float32; 1 where there is none."""
    return torch.tensor([1.0 if example.label is None else example.label for example in groups.examples])


def labels_as_scores(groups: Groups) -> Rewards:
    """Return the records' labels as scores; NaN where there is none."""
    return Rewards(torch.tensor([torch.nan if e.label is None else e.label for e in groups.examples]))


def first_pictures(ctx: Context, groups: Groups) -> Media:
    """Return the pixels of the first records' first samples."""
    shown = groups[:SHOWN]
    pixels = [ctx.policy.latents.pixels(example.media[0]) for example in shown.examples]
    return ctx.policy.media(shown.prompts, torch.stack(pixels))
