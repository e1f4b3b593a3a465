"""Which reward model to trust: measured against people, against what should not matter, and against each other."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from alignment.statistics import Interval, interval
from evals.agreement import Agreement, Concord, agreement, concord, spread
from evals.benchmarks.base import Comparison
from evals.probes import PROBES, Probe
from evals.scoring import Judge, Request

RISE = 0.1
"""Of a spread: a score that rises by less has hardly noticed."""


@dataclass(frozen=True)
class Probed:
    """What one change does to a reward model's scores. The unit is the spread of its margins.

    Attributes:
        kind: "invariance" or "artefact".
        says: What was done.
        shift: Mean change of a score, in spreads.
        turned: Share of decided comparisons whose preference turns when both media are changed.
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
        listens: Share of preferred media whose score falls under the caption of another comparison: about 1/2 for a
            model that does not read, 1 for one that does.
        hackability: Mean over artefacts of the share of media whose score they raise: 0 for none, 1 for all.
        per_second: Media scored a second, reading them included.
        peak_memory_bytes: Of the device after scoring; on the CPU, of the whole process so far.
    """

    agreement: Agreement
    margins: tuple[float, ...]
    spread: float
    probes: dict[str, Probed]
    listens: Interval | None
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
    judge: Judge, comparisons: Sequence[Comparison], probed: int, done: Callable[[int], None] = lambda count: None
) -> Measured:
    """Measure one reward model.

    Args:
        judge: It, loaded.
        comparisons: What people said.
        probed: Comparisons whose media are probed, from the first on; 0 for none.
        done: Told how many media have been scored since it was last told.
    """
    start = time.perf_counter()
    margins = _margins(judge, comparisons, done=done)
    seconds = time.perf_counter() - start
    human = [c.human for c in comparisons]
    found = agreement(margins, human, [c.unit for c in comparisons], [c.part for c in comparisons])
    unit = spread(margins, human)
    some = [c for c in comparisons if c.human][:probed]
    usable = bool(some) and math.isfinite(unit) and unit > 0
    probes = {probe.name: _probe(judge, some, probe, unit, done) for probe in PROBES} if usable else {}
    artefacts = [p.rises for p in probes.values() if p.kind == "artefact"]
    return Measured(
        agreement=found,
        margins=tuple(margins),
        spread=unit,
        probes=probes,
        listens=_listens(judge, some, done) if usable else None,
        hackability=_mean_of(artefacts) if artefacts else None,
        per_second=2 * len(comparisons) / seconds,
        peak_memory_bytes=peak_memory(judge.device),
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


def _margins(
    judge: Judge,
    comparisons: Sequence[Comparison],
    probe: Probe | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> list[float]:
    requests = [Request(c.prompt, medium) for c in comparisons for medium in (c.first, c.second)]
    given = (probe.alter, probe.name) if probe else (None, "")
    scores = judge.scores(requests, *given, done=done)
    return [first - second for first, second in zip(scores[::2], scores[1::2], strict=True)]


def _probe(
    judge: Judge, comparisons: Sequence[Comparison], probe: Probe, unit: float, done: Callable[[int], None]
) -> Probed:
    """Score the changed media and compare with the media as they are."""
    requests = [Request(c.prompt, medium) for c in comparisons for medium in (c.first, c.second)]
    before = judge.scores(requests)
    after = judge.scores(requests, probe.alter, probe.name, done)
    shifts = [(b - a) / unit for a, b in zip(before, after, strict=True)]
    units = [c.unit for c in comparisons for _ in range(2)]
    pairs = list(zip(_margins(judge, comparisons), _margins(judge, comparisons, probe), strict=True))
    known = [(a, b) for a, b in pairs if not math.isnan(a + b)]
    turned = sum(a * b < 0 for a, b in known) / len(known) if known else math.nan
    rises = [math.nan if math.isnan(shift) else float(shift > RISE) for shift in shifts]
    return Probed(probe.kind, probe.says, interval(shifts, units), turned, interval(rises, units))


def _listens(judge: Judge, comparisons: Sequence[Comparison], done: Callable[[int], None]) -> Interval | None:
    """Return how often a preferred medium scores lower under another caption; None if there is no other."""
    own, other, units = [], [], []
    prompts = [c.prompt for c in comparisons]
    for i, c in enumerate(comparisons):
        strange = next((p for p in prompts[i:] + prompts[:i] if p != c.prompt), None)
        if strange is not None:
            medium = c.first if c.human > 0 else c.second
            own.append(Request(c.prompt, medium))
            other.append(Request(strange, medium))
            units.append(c.unit)
    if not own:
        return None
    falls = [b - a for a, b in zip(judge.scores(own), judge.scores(other, done=done), strict=True)]
    return interval([math.nan if math.isnan(f) else 1.0 if f < 0 else 0.5 if f == 0 else 0.0 for f in falls], units)


def _mean_of(shares: Sequence[Interval]) -> Interval:
    """Return the mean of shares over the same media, with the mean of their intervals: an upper bound of its width."""
    means = [sum(values) / len(shares) for values in zip(*((s.mean, s.low, s.high) for s in shares), strict=True)]
    return Interval(*means, n=sum(s.n for s in shares))
