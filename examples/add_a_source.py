"""A source of your own is one dataclass; this one samples as `on_policy` does and learns from what did well alone.

visalign train quickstart_nft name=winners \
        'source={type: "examples.add_a_source:Winners", prompts: 4, reward: {type: shapes, strict: 0.8}}'
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from alignment.context import Context
from alignment.data.batches import Experience, Groups, Samples
from alignment.sources.on_policy import OnPolicy


@dataclass(frozen=True)
class Winners(OnPolicy):
    """Sample each prompt `group_size` times; credit below 0 becomes 0.

    What it produces, `Samples`, says which objectives can learn from it. A source that makes its experience in another
    way writes `__call__` whole: it gets this process's prompts and returns a batch, metrics and the samples.
    """

    def __call__(self, ctx: Context, groups: Groups) -> Experience[Samples]:
        """Sample, score and credit."""
        made = super().__call__(ctx, groups)
        return replace(made, batch=replace(made.batch, advantage=made.batch.advantage.clamp(min=0)))
