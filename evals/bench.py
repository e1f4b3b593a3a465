"""Which reward model to trust: measured against people, against what should not matter, and against each other."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from alignment.reports.statistics import Interval, interval
from evals.agreement import Agreement, Concord, agreement, concord, spread
from evals.benchmarks.base import Comparison
from evals.probes import PROBES, Probe
from evals.scoring import BatchScorer, Request

RISE = 0.1
"""Of a spread: a score that rises by less has hardly noticed."""

CAPTIONS = "captions"
"""Name of the one probe that leaves the media alone."""


@dataclass(frozen=True)
class Probed:
    """What one change does to a reward model's scores. The unit is the spread of its margins.

    Attributes:
        kind: "invariance", "artefact", or "captions": every caption replaced by that of another comparison, where a
            score that stays has not read them.
        says: The change, in words.
        shift: Mean change of a score, in spreads.
        turned: Share of decided comparisons whose preference turns when it is done to both.
        rises: Share of media whose score rises by more than `RISE` spreads.
    """

    kind: str
    says: str
    shift: Interval
    turned: float
    rises: Interval


@dataclass(frozen=True)
class Measured:
    """One reward model on one benchmark.

    Attributes:
        agreement: With people.
        margins: First's score minus second's of every comparison; NaN where one has none.
        spread: Median |margin| of decided comparisons.
        probes: By name; empty where probing was not asked for.
        reads: Share of preferred media whose score falls under the caption of another comparison: about 1/2 for a
            model that does not read, 1 for one that does.
        turned: Mean over invariances of the share of preferences that turn; None without probes.
        hackability: Mean over artefacts of the share of media whose score they raise: 0 for none, 1 for all.
        per_second: Media scored per second, reading them included.
        peak_memory_bytes: Of the device after scoring; on the CPU, of the whole process so far.
    """

    agreement: Agreement
    margins: tuple[float, ...]
    spread: float
    probes: dict[str, Probed]
    reads: Interval | None
    turned: float | None
    hackability: Interval | None
    per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Bench:
    """Reward models on one benchmark.

    Attributes:
        benchmark: Its name.
        comparisons: What people said.
        measured: Each reward model, by the name it was given.
        concord: How each two of them agree, by both names.
    """

    benchmark: str
    comparisons: tuple[Comparison, ...]
    measured: dict[str, Measured]
    concord: dict[tuple[str, str], Concord]


def measure(
    scorer: BatchScorer,
    comparisons: Sequence[Comparison],
    probed: int,
    done: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Measure one reward model.

    Args:
        scorer: The loaded reward model.
        comparisons: What people said.
        probed: Comparisons whose media are probed, from the first on; 0 for none.
        done: Called with the number of media scored since its last call.
    """
    start = time.perf_counter()
    margins = _differences(scorer.scores(_both(comparisons), done=done))
    seconds = time.perf_counter() - start
    human = [c.human for c in comparisons]
    found = agreement(margins, human, [c.unit for c in comparisons], [c.part for c in comparisons])
    unit = spread(margins, human)
    some = [c for c in comparisons if c.human][:probed]
    usable = bool(some) and math.isfinite(unit) and unit > 0
    probes = {probe.name: _probe(scorer, some, probe, unit, done) for probe in PROBES} if usable else {}
    shuffled = _shuffled(scorer, some, unit, done) if usable else None
    if shuffled is not None:
        probes[CAPTIONS] = shuffled[0]
    artefacts = [p.rises for p in probes.values() if p.kind == "artefact"]
    turned = [p.turned for p in probes.values() if p.kind == "invariance"]
    return Measured(
        agreement=found,
        margins=tuple(margins),
        spread=unit,
        probes=probes,
        reads=None if shuffled is None else shuffled[1],
        turned=sum(turned) / len(turned) if turned else None,
        hackability=_mean_of(artefacts) if artefacts else None,
        per_second=2 * len(comparisons) / seconds,
        peak_memory_bytes=peak_memory(scorer.device),
    )


def agree(measured: dict[str, Measured]) -> dict[tuple[str, str], Concord]:
    """Return how each two of the models agree."""
    return {
        (one, other): concord(measured[one].margins, measured[other].margins) for one in measured for other in measured
    }


def worst(found: Measured, comparisons: Sequence[Comparison], count: int) -> list[int]:
    """Return the decided comparisons a model gets most wrong, the worst first."""
    against = [(-c.human * m, i) for i, (c, m) in enumerate(zip(comparisons, found.margins, strict=True)) if c.human]
    return [i for wrong, i in sorted(against, key=lambda pair: -pair[0]) if wrong > 0][:count]


def peak_memory(device: torch.device) -> int:
    """Return the most memory held so far, in bytes: on the device, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _both(comparisons: Sequence[Comparison]) -> list[Request]:
    return [Request(c.prompt, medium) for c in comparisons for medium in (c.first, c.second)]


def _differences(scores: Sequence[float]) -> list[float]:
    """Return first minus second of scores that come in pairs."""
    return [first - second for first, second in zip(scores[::2], scores[1::2], strict=True)]


def _probe(
    scorer: BatchScorer, comparisons: Sequence[Comparison], probe: Probe, unit: float, done: Callable[[int], None]
) -> Probed:
    """Score the changed media and compare with the media as they are."""
    before = scorer.scores(_both(comparisons))
    after = scorer.scores(_both(comparisons), probe.alter, probe.name, done)
    return _probed(probe.kind, probe.says, before, after, unit, comparisons)


def _shuffled(
    scorer: BatchScorer, comparisons: Sequence[Comparison], unit: float, done: Callable[[int], None]
) -> tuple[Probed, Interval] | None:
    """Score the media under other captions; None if there is but one.

    Returns:
        What that does, and how often the score of a preferred medium falls.
    """
    prompts = [c.prompt for c in comparisons]
    if len(set(prompts)) < 2:
        return None
    strange = [next(p for p in prompts[i:] + prompts[:i] if p != own) for i, own in enumerate(prompts)]
    before = scorer.scores(_both(comparisons))
    after = scorer.scores([Request(strange[i // 2], r.medium) for i, r in enumerate(_both(comparisons))], done=done)
    preferred = [2 * i + (c.human < 0) for i, c in enumerate(comparisons)]
    falls = [
        math.nan if math.isnan(d) else 1.0 if d < 0 else 0.5 if d == 0 else 0.0
        for d in (after[i] - before[i] for i in preferred)
    ]
    probed = _probed(CAPTIONS, "each caption replaced by another's", before, after, unit, comparisons)
    return probed, interval(falls, [c.unit for c in comparisons])


def _probed(
    kind: str,
    says: str,
    before: Sequence[float],
    after: Sequence[float],
    unit: float,
    comparisons: Sequence[Comparison],
) -> Probed:
    """Compare the scores of both media of each comparison, before and after a change."""
    shifts = [(b - a) / unit for a, b in zip(before, after, strict=True)]
    units = [c.unit for c in comparisons for _ in range(2)]
    pairs = list(zip(_differences(before), _differences(after), strict=True))
    known = [(a, b) for a, b in pairs if not math.isnan(a + b)]
    turned = sum(a * b < 0 for a, b in known) / len(known) if known else math.nan
    rises = [math.nan if math.isnan(shift) else float(shift > RISE) for shift in shifts]
    return Probed(kind, says, interval(shifts, units), turned, interval(rises, units))


def _mean_of(shares: Sequence[Interval]) -> Interval:
    """Return the mean of shares over the same media, with the mean of their intervals: an upper bound of its width."""
    means = [sum(values) / len(shares) for values in zip(*((s.mean, s.low, s.high) for s in shares), strict=True)]
    return Interval(*means, n=sum(s.n for s in shares))
