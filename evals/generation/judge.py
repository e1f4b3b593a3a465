"""The second stage: what rewards and extractors say of every picture, a unit at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alignment.errors import ConfigError, DataError
from alignment.features.base import Extractor
from evals.generation.generate import missing, named, suites_of
from evals.generation.makers import media
from evals.generation.plan import EvalPlan, Share
from evals.generation.progress import Bar
from evals.generation.shelf import Unit
from evals.medium import Levels, Medium, as_media
from evals.scoring import BatchScorer, MediumScore, Request
from reward_models.base import RewardError
from reward_models.loading.fingerprint import fingerprint

Job = tuple[str, str, Unit]
"""A subject, a suite, and a unit of it."""


def judge(plan: EvalPlan, share: Share, bar: Bar) -> None:
    """Score and describe what is missing of this process's part.

    Raises:
        DataError: If pictures are not made yet, or are not what was made; what was scored is kept.
        RewardError: If a reward fails on all pictures of a unit.
    """
    if unmade := [name for name in named(plan) if missing(plan, share, name)]:
        raise DataError(f"pictures of {', '.join(unmade)} are not there yet; run the stage before: --only generate")
    rewards = _missing_scores(plan, share)
    features = _missing_features(plan, share)
    bar.begin("score", {title: sum(len(u.rows) for _, _, u in jobs) for title, jobs in {**rewards, **features}.items()})
    for title, jobs in rewards.items():
        if jobs:
            _score(plan, title, jobs, bar)
    for title, jobs in features.items():
        if jobs:
            _extract(plan, title, plan.extractors[title], jobs, bar)


def check_weights(plan: EvalPlan, share: Share) -> None:
    """Look for the weights of what is still to describe pictures, before they are made.

    Raises:
        ConfigError: If some are missing.
    """
    for title, jobs in _missing_features(plan, share).items():
        if jobs:
            plan.extractors[title].check()


def unjudged(plan: EvalPlan, share: Share) -> bool:
    """Whether something of a process's part is not scored or described yet."""
    return any(_missing_scores(plan, share).values()) or any(_missing_features(plan, share).values())


def _missing_scores(plan: EvalPlan, share: Share) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = {}
    for suite in plan.suites:
        for title in plan.rewards_of(suite):
            jobs = found.setdefault(title, [])
            for subject in plan.subjects:
                shelf = plan.shelf("scores", title, subject.name, suite)
                jobs += [
                    (subject.name, suite, unit)
                    for unit in plan.units(suite)
                    if share.takes(unit) and shelf.get(unit) is None
                ]
    return found


def _missing_features(plan: EvalPlan, share: Share) -> dict[str, list[Job]]:
    found: dict[str, list[Job]] = {}
    for title in plan.extractors:
        found[title] = [
            (name, suite, unit)
            for name in named(plan)
            for suite in suites_of(plan, name)
            for unit in plan.units_of(name, suite)
            if share.takes(unit) and plan.shelf("features", title, name, suite).tensor(unit) is None
        ]
    return found


def _made(plan: EvalPlan, job: Job) -> list[Medium]:
    name, suite, unit = job
    known = plan.shelf("made", name, suite).get(unit)
    assert known is not None  # looked for before anything is loaded
    return media(plan, known)


def _score(plan: EvalPlan, title: str, jobs: list[Job], bar: Bar) -> None:
    models = {suite: plan.rewards_of(suite)[title] for _, suite, _ in jobs}
    for model in dict.fromkeys(map(repr, models.values())):
        own = [job for job in jobs if repr(models[job[1]]) == model]
        scorer = BatchScorer(models[own[0][1]], plan.device, plan.making.batch_size)
        mark = fingerprint(scorer.loaded)
        _check_same(plan, title, mark, {(name, suite) for name, suite, _ in own})
        for name, suite, unit in own:
            items = plan.items[suite]
            prompts = [items[row.item].prompt for row in unit.rows]
            asked = [Request(*pair) for pair in zip(prompts, _made(plan, (name, suite, unit)), strict=True)]
            shelf = plan.shelf("scores", title, name, suite)
            shelf.put(unit, {"fingerprint": mark, **_columns(unit, _said(scorer, asked))})
            scorer.known.clear()  # so that memory does not grow with the number of pictures
            bar.advance(title, len(unit.rows))


def _check_same(plan: EvalPlan, title: str, mark: str, places: set[tuple[str, str]]) -> None:
    for name, suite in places:
        for unit in plan.units(suite):
            known = plan.shelf("scores", title, name, suite).get(unit)
            if known is not None and known["fingerprint"] != mark:
                raise ConfigError(
                    f"{title} is another reward model than the one whose scores are in {plan.output / 'scores'}: its "
                    "weights, fields or code have changed. Remove its folder there, and all pictures are scored anew"
                )


def _said(scorer: BatchScorer, asked: list[Request]) -> list[MediumScore | str]:
    """Return what the reward says of each picture, or in words why it has no score."""
    try:
        return list(scorer.verdicts(asked))
    except (DataError, RewardError) as error:
        if len(asked) == 1:
            return [str(error)]
        found = [said for one in asked for said in _said(scorer, [one])]
        if isinstance(error, RewardError) and all(isinstance(said, str) for said in found):
            raise
        return found


def _columns(unit: Unit, said: list[MediumScore | str]) -> dict[str, object]:
    """Return scores by name, null where there is none, and the reasons."""
    parts = dict.fromkeys(part for one in said if isinstance(one, MediumScore) for part in one.parts)

    def column(pick: Callable[[MediumScore], float]) -> list[float | None]:
        values = [pick(one) if isinstance(one, MediumScore) else math.nan for one in said]
        return [None if math.isnan(value) else value for value in values]

    return {
        "scores": {
            "": column(lambda one: one.score),
            **{part: column(lambda one, part=part: one.parts.get(part, math.nan)) for part in parts},
        },
        "reasons": {row.name: one for row, one in zip(unit.rows, said, strict=True) if isinstance(one, str)},
    }


def _extract(plan: EvalPlan, title: str, extractor: Extractor, jobs: list[Job], bar: Bar) -> None:
    extract = extractor.load(device=plan.device)
    for name, suite, unit in jobs:
        rows = [medium.levels() for medium in _made(plan, (name, suite, unit))]
        plan.shelf("features", title, name, suite).put_tensor(unit, _together(rows, plan, extract))
        bar.advance(title, len(unit.rows))


def _together(rows: list[Levels], plan: EvalPlan, extract: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the features of pictures, those of one shape in one call."""
    found: list[Tensor | None] = [None] * len(rows)
    shapes: dict[tuple[object, ...], list[int]] = {}
    for number, levels in enumerate(rows):
        shapes.setdefault(levels.shape, []).append(number)
    with torch.no_grad():
        for numbers in shapes.values():
            made = extract(as_media([rows[n] for n in numbers]).pixels.to(plan.device)).float().cpu()
            for number, row in zip(numbers, made, strict=True):
                found[number] = row
    return torch.stack([row for row in found if row is not None])
