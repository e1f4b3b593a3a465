"""The first stage: every picture of every subject, made or found, a unit at a time."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from alignment.errors import ConfigError
from evals.generation.makers import Drawn, FromFolder, Maker, brought, generated, manifest, real_files
from evals.generation.plan import EvalPlan, Share
from evals.generation.progress import Bar
from evals.generation.shelf import Unit
from evals.generation.subjects import REFERENCE, Candidate
from evals.medium import Medium

Work = list[tuple[str, Unit]]
"""Units with the suite that each is of."""


def generate(plan: EvalPlan, share: Share, bar: Bar) -> None:
    """Make what is missing of this process's part; what is there is kept.

    Raises:
        VisalignError: If something cannot be made; what was made is kept.
    """
    todo = {name: missing(plan, share, name) for name in named(plan)}
    bar.begin("generate", {name: sum(len(unit.rows) for _, unit in work) for name, work in todo.items()})
    for subject in (*plan.subjects, None):
        name = REFERENCE if subject is None else subject.name
        if not todo.get(name):
            continue
        _make(plan, _maker(subject, plan), name, todo[name], bar)
        if subject is not None and subject.kind != "pictures":
            _release()
    if share.rank == 0:
        for subject in plan.subjects:
            for suite in plan.suites if subject.kind != "pictures" else ():
                manifest(plan, subject.name, suite)


def named(plan: EvalPlan) -> list[str]:
    """Return the names of everything that has pictures."""
    reference = [REFERENCE] if any(map(plan.has_reference, plan.suites)) else []
    return [*(subject.name for subject in plan.subjects), *reference]


def suites_of(plan: EvalPlan, name: str) -> list[str]:
    """Return the suites on which a subject, or the reference, has pictures."""
    return [suite for suite in plan.suites if name != REFERENCE or plan.has_reference(suite)]


def missing(plan: EvalPlan, share: Share, name: str) -> Work:
    """Return the units of this process's part that are not made yet."""
    return [
        (suite, unit)
        for suite in suites_of(plan, name)
        for unit in plan.units_of(name, suite)
        if share.takes(unit) and plan.shelf("made", name, suite).get(unit) is None
    ]


def _maker(subject: Candidate | None, plan: EvalPlan) -> Maker:
    if subject is None:
        real = () if plan.real is None else real_files(plan.real, plan.references)
        return Drawn(REFERENCE, plan, real, "drawn" if plan.real is None else str(plan.real.resolve()))
    return brought(subject, plan) if subject.kind == "pictures" else generated(subject, plan)


def _make(plan: EvalPlan, maker: Maker, name: str, work: Work, bar: Bar) -> None:
    _check_same(plan, maker, name)
    bar.ready()
    for suite, unit in work:
        files = maker(suite, unit)
        media = [Medium.file(path) for path in files]
        for medium in media if isinstance(maker, FromFolder | Drawn) else ():
            medium.levels()  # what is damaged is refused before anything is scored
        digests = [medium.digest for medium in media]
        told = [_told(path, plan.output) for path in files]
        known = {"files": told, "digests": digests, "fingerprint": maker.fingerprint}
        plan.shelf("made", name, suite).put(unit, known)
        bar.advance(name, len(files))


def _check_same(plan: EvalPlan, maker: Maker, name: str) -> None:
    """Refuse to go on with pictures of something else."""
    for suite in suites_of(plan, name):
        for unit in plan.units_of(name, suite):
            known = plan.shelf("made", name, suite).get(unit)
            if known is not None:
                if known["fingerprint"] != maker.fingerprint:
                    raise ConfigError(
                        f"{name}: the pictures in {plan.output} were made by something else of that name; give this "
                        f"one another: NAME=PLACE, or choose another --output"
                    )
                break


def _told(path: Path, output: Path) -> str:
    return os.path.relpath(path, output) if path.is_relative_to(output) else str(path.resolve())


def _release() -> None:
    """Give back the memory of a pipeline before the next is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pictures(plan: EvalPlan, names: Sequence[str]) -> int:
    """Return how many pictures there are to be."""
    return sum(
        len(unit.rows) for name in names for suite in suites_of(plan, name) for unit in plan.units_of(name, suite)
    )
