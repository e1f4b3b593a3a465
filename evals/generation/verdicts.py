"""What a comparison says: better, worse, or not to be told apart, and how many pictures it would take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from alignment.reports.statistics import CONFIDENCE, Interval

Verdict = Literal["better", "worse", "even", "moved"]

POWER = 0.8
"""How often a difference is found where "pictures that could" are compared."""
_ROUNDING = 1e-6
"""Of a mean: what float32 leaves of a difference of nothing."""
MOST = 10_000_000
"""Pictures beyond which a number of them means nothing."""


@dataclass(frozen=True)
class Change:
    """One measure of a subject beside the base's.

    Attributes:
        measure: What is measured.
        base: The base's mean.
        final: The subject's.
        change: The mean difference, pair by pair.
        share: Whether it is a share of the pictures, to be told in percent.
        better: 1 where more is better, -1 where less is, 0 where neither.
        pictures: Pictures that were compared.
        gain: How many times wider the interval would be without pairs; NaN where that cannot be told.
        derived: Whether it follows from another measure, and so is no news of its own.
    """

    measure: str
    base: Interval
    final: Interval
    change: Interval
    share: bool
    better: int
    pictures: int
    gain: float = math.nan
    derived: bool = False

    @property
    def verdict(self) -> Verdict:
        """What the interval of the difference says."""
        sign = 0 if self.same else 1 if self.change.low > 0 else -1 if self.change.high < 0 else 0
        if sign == 0:
            return "even"
        return "moved" if self.better == 0 else "better" if sign == self.better else "worse"

    @property
    def same(self) -> bool:
        """Whether nothing changed but by rounding."""
        size = _ROUNDING * max(abs(self.base.mean), abs(self.final.mean))
        return abs(self.change.low) <= size and abs(self.change.high) <= size

    @property
    def error(self) -> float:
        """Standard error of the difference, as far as the interval tells it."""
        return (self.change.high - self.change.low) / 2 / _z((1 + CONFIDENCE) / 2)

    @property
    def smallest(self) -> float:
        """The difference that as many pictures find in four of five cases."""
        return _reach() * self.error

    @property
    def needed(self) -> int | None:
        """Pictures, of prompts as many times more, that find a difference of this size in four of five cases."""
        size, error = abs(self.change.mean), self.error
        if not size or not error or self.same or math.isnan(error):
            return None
        count = self.pictures * (_reach() * error / size) ** 2
        return math.ceil(count) if count < MOST else None

    def said(self) -> str:
        """Return the measure with what was seen, as a part of a sentence."""
        if self.verdict != "even":
            return f"{self.measure} {self.signed(self.change.mean)} {self.ends()}"
        if self.same:
            return f"{self.measure} (the same)"
        could = "" if self.needed is None else f"; about {rounded(self.needed)} pictures could"
        return f"{self.measure} ({self.signed(self.change.mean)} {self.ends()}{could})"

    def signed(self, value: float) -> str:
        """Return a difference as text; of shares in percentage points."""
        if math.isnan(value):
            return "n/a"
        return f"{100 * value:+.1f} points" if self.share else f"{value:+.3g}"

    def number(self, value: float) -> str:
        """Return a mean as text; a share in percent."""
        if math.isnan(value):
            return "n/a"
        return f"{100 * value:.1f} %" if self.share else f"{value:.4g}"

    def ends(self) -> str:
        """Return the interval of the difference as text."""
        return f"[{self.signed(self.change.low)}, {self.signed(self.change.high)}]".replace(" points", "")

    def between(self, interval: Interval) -> str:
        """Return the ends of an interval of means as text."""
        return f"[{self.number(interval.low)}, {self.number(interval.high)}]".replace(" %", "")

    def position(self, value: float) -> float:
        """Return where a mean lies, in percent, on a scale that holds both intervals."""
        found = [self.base, self.final]
        known = [end for one in found for end in (one.mean, one.low, one.high) if not math.isnan(end)]
        low, high = min(known, default=0.0), max(known, default=1.0)
        return 50.0 if high <= low or math.isnan(value) else 4 + 92 * (value - low) / (high - low)


def heard(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """Return what got better, what got worse, and what cannot be told apart, by these words."""
    words = {"better": "better", "worse": "worse", "even": "cannot be told apart"}
    said = [change for change in changes if change.better and not change.derived]
    found = {told: [change for change in said if change.verdict == verdict] for verdict, told in words.items()}
    return {told: changes for told, changes in found.items() if changes}


def sentence(name: str, base: str, suite: str, changes: Sequence[Change]) -> str:
    """Return in plain words what a subject does better than the base, what worse, and what cannot be told."""
    pictures = max((change.pictures for change in changes), default=0)
    parts = [f"{told}: {', '.join(change.said() for change in found)}" for told, found in heard(changes).items()]
    at = f" at {pictures:,} pictures each"
    return f"{name} against {base} on {suite}{at}: {'; '.join(parts) or 'nothing could be compared'}."


def rounded(count: int) -> str:
    """Return a number of pictures to two digits: it is an estimate."""
    digits = max(0, len(str(count)) - 2)
    return f"{math.ceil(count / 10**digits) * 10**digits:,}"


def _z(share: float) -> float:
    return NormalDist().inv_cdf(share)


def _reach() -> float:
    """Return how many standard errors a difference must have to be found in four of five cases."""
    return _z((1 + CONFIDENCE) / 2) + _z(POWER)
