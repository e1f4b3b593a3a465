"""Which pairs there are, which one a rater sees next, and on which side each picture stands."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alignment.data.random_streams import Draw

Said = Literal["first", "second", "tie", "bad"]
"""What a rater says of a pair: the first, the second, equally good, both bad."""
Side = Literal["left", "right"]
EACH = 5
"""Every so manieth pair of a rater is one that another has judged, so that their agreement is known."""


@dataclass(frozen=True)
class Matchup:
    """Two subjects' pictures of one prompt and one noise.

    Attributes:
        name: The row's, and the two subjects'.
        item: Number of the prompt.
        prompt: Its text.
        subjects: Who made the first and the second.
        media: Name of each one's file in the folder of votes, which says nothing of who made it.
        source: Name of the picture that both were made from; empty where they were made from none.
    """

    name: str
    item: int
    prompt: str
    subjects: tuple[str, str]
    media: tuple[str, str]
    source: str = ""

    @property
    def files(self) -> list[str]:
        """All files that are shown."""
        return [*self.media, *([self.source] if self.source else [])]


@dataclass(frozen=True)
class Vote:
    """What a rater said of a pair.

    Attributes:
        pair: The pair's name.
        rater: Who said it.
        said: What.
    """

    pair: str
    rater: str
    said: Said


def left_is_first(seed: int, pair: Matchup, rater: str) -> bool:
    """Return on which side the first stands: a fair coin for each rater and pair, the same whenever it is asked."""
    return bool(Draw(seed).key(f"side {rater} {pair.name}") & 1)


def next_pair(pairs: Sequence[Matchup], votes: Sequence[Vote], rater: str, seed: int) -> Matchup | None:
    """Return what a rater sees next; None where nothing is left. The same until the rater has voted.

    Every `EACH`th is one that another rater has judged. The others are of the two subjects that the votes tell apart
    least, of the prompt that has been asked about least.

    Args:
        pairs: All.
        votes: All so far.
        rater: Who asks.
        seed: Of what is left to chance.
    """
    own = {vote.pair for vote in votes if vote.rater == rater}
    left = [pair for pair in pairs if pair.name not in own]
    judged = Counter(vote.pair for vote in votes)
    others = [pair for pair in left if judged[pair.name]]
    if others and len(own) % EACH == EACH - 1:
        left = others
    elif fresh := [pair for pair in left if not judged[pair.name]]:
        left = fresh
    if not left:
        return None
    by_name = {pair.name: pair for pair in pairs}
    asked = Counter(by_name[vote.pair].item for vote in votes if vote.pair in by_name)
    unsure = unsureness(pairs, votes)
    draw = Draw(seed)
    return min(left, key=lambda p: (unsure[p.subjects], asked[p.item], judged[p.name], draw.key(f"order {p.name}")))


def unsureness(pairs: Sequence[Matchup], votes: Sequence[Vote]) -> Mapping[tuple[str, str], float]:
    """Return by how many standard errors the votes tell two subjects apart: 0 where nothing does yet."""
    by_name = {pair.name: pair for pair in pairs}
    lead: dict[tuple[str, str], list[int]] = {pair.subjects: [] for pair in pairs}
    for vote in votes:
        if vote.pair in by_name:
            lead[by_name[vote.pair].subjects].append({"first": 1, "second": -1}.get(vote.said, 0))
    # With a vote for each side added, so that three votes for one are not a certainty.
    return {subjects: round(abs(sum(said)) / math.sqrt(sum(map(abs, said)) + 2), 1) for subjects, said in lead.items()}


def agreement(votes: Sequence[Vote]) -> float:
    """Return Krippendorff's alpha of what raters said of the pairs that two or more judged; NaN where there is none.

    1: they always agree. 0: no more than by chance. Nominal: a tie is as far from the first as the second is.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C.
    """
    units: dict[str, dict[str, Said]] = {}
    for vote in votes:
        units.setdefault(vote.pair, {})[vote.rater] = vote.said
    shared = [list(unit.values()) for unit in units.values() if len(unit) > 1]
    counts = Counter(said for unit in shared for said in unit)
    total = sum(counts.values())
    expected = sum(a * b for (_, a), (_, b) in itertools.permutations(counts.items(), 2)) / max(total - 1, 1)
    if not expected:
        return 1.0 if total and len(counts) == 1 else math.nan
    observed = sum(
        sum(one != other for one, other in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in shared
    )
    return 1.0 - observed / expected
