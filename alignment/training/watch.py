"""The watch: whether what a run does not train on has fallen, told with a stated rate of false alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from alignment.config.run import Run, Watch
from alignment.errors import ConfigError
from alignment.reports import run_folder
from alignment.reports.run_folder import Evaluated
from alignment.reports.statistics import fall
from alignment.training.loop import Trainer
from alignment.training.sights import DIVERSITY, DRIFT, LOOKS, Sights

LEAST_SPREAD = 0.01
"""Of a look before training: pictures that are all alike leave it no room."""

Scores = Mapping[str, Tensor]
"""Of each picture of an evaluation, by metric."""


@dataclass(frozen=True)
class Alarm:
    """A metric that has fallen, or has left the room that it had.

    Attributes:
        metric: Which.
        since: Steps done at the evaluation that was better.
        now: Steps done now.
        change: Mean change from picture to picture; of what is watched beside gold the room that is left: below zero.
        at_most: Upper end of it, at the level of the watch: below zero.
        did: What was done about it.
    """

    metric: str
    since: int
    now: int
    change: float
    at_most: float
    did: str

    def __str__(self) -> str:
        by = f"by {-self.change:.3g} from picture to picture, by {-self.at_most:.3g} at the least"
        if self.metric in (DIVERSITY, DRIFT, *LOOKS):
            how = "fallen" if self.metric == DIVERSITY else "moved"
            return f"{self.metric} has {how} farther from what it was before training than watch.room allows, {by}"
        return f"{self.metric} has fallen since step {self.since}, {by}"


class WentBack(Exception):
    """The run goes on from an earlier checkpoint."""


@dataclass
class Watching:
    """What a watch has seen of a run. Every process of a run sees the same, and decides the same.

    Each evaluation is compared with each earlier one, picture by picture, for each gold metric; for what is watched
    beside them with that before training. The prompts are the same every time, so that the noise is all that is left to
    chance. All comparisons of a run share the rate of false alarms (Bonferroni's inequality): of runs in which
    nothing falls, no larger share is alarmed, whichever evaluation is called the best.

    Attributes:
        settings: Of the config.
        evaluations: How many the run makes.
        rows: Rows that evaluations have in common: those of the smallest.
        sights: What measures pictures beside their scores; None where that is not asked for.
        seen: Scores by steps done, in the order of training.
        kept: Steps done that there is a checkpoint of.
        alarms: So far.
    """

    settings: Watch
    evaluations: int
    rows: int
    sights: Sights | None = None
    seen: dict[int, Scores] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)
    alarms: list[Alarm] = field(default_factory=list)

    @classmethod
    def of(cls, run: Run, prompts: int, device: torch.device) -> Watching | None:
        """Return the watch of a run; None where it has none.

        Args:
            run: The run.
            prompts: How many are held out.
            device: Where pictures are described.
        """
        if run.watch is None:
            return None
        least = min(run.evaluation.images_per_prompt, run.evaluation.curve_images_per_prompt)
        sights = Sights.of(run.watch, prompts, device)
        return cls(run.watch, 2 + (run.steps - 1) // run.evaluation.every, least * prompts, sights)

    @property
    def watched(self) -> tuple[str, ...]:
        """All that is measured for it."""
        return (*self.settings.gold, *(() if self.sights is None else self.sights.metrics))

    @property
    def best(self) -> int | None:
        """Steps done at the best evaluation that is kept, by the first gold metric; of equals the earliest."""
        metric = self.settings.gold[0]
        means = {step: _mean(scores[metric][: self.rows]) for step, scores in self.seen.items() if step in self.kept}
        return max(means, key=lambda step: (means[step], -step), default=None)

    @property
    def chance(self) -> float:
        """The rate of false alarms of one comparison."""
        of_looks = 2 * len(LOOKS)  # each of which may go either way
        with_base = sum(of_looks if what == "looks" else 1 for what in self.settings.also)
        comparisons = (self.evaluations - 1) * (len(self.settings.gold) * self.evaluations / 2 + with_base)
        return self.settings.false_alarms / comparisons

    @property
    def went_back(self) -> int:
        """How often the run has gone back."""
        return sum(alarm.did == "rollback" for alarm in self.alarms)

    def todo(self, step: int) -> Literal["stop", "rollback"] | None:
        """Return what is to be done at a step, by its alarm and by what the config says now; None for nothing."""
        did = self.settings.on_alarm
        alarmed = any((alarm.now, alarm.did) == (step, did) for alarm in self.alarms)
        return did if alarmed and did != "warn" and self.best != step else None

    def look(self, step: int, result: Evaluated, *, last: bool = False) -> Alarm | None:
        """Return the alarm that an evaluation gives: the fall that is surest, of all that are sure; None without one.

        Whoever calls sees to it that there is a checkpoint of the step if it is the best now.

        Args:
            step: Steps done.
            result: The evaluation.
            last: Whether the run is over, so that nothing can be done but to say it.

        Raises:
            ConfigError: If a gold metric is not among those that are measured.
        """
        if missing := [name for name in self.settings.gold if name not in result.scores]:
            raise ConfigError(
                f"watch.gold: evaluations do not measure {', '.join(missing)}, but {', '.join(result.scores)}; name "
                "some of these, or measure more: evaluation.reward: {type: weighted, parts: ...} with weight 0"
            )
        now = {name: result.scores[name] for name in self.watched}
        falls = []
        for metric, since, left in self._compared({name: scores[: self.rows] for name, scores in now.items()}):
            change, at_most = fall(left.tolist(), self.chance)
            if at_most < 0:
                did = "warn" if last else self.settings.on_alarm
                falls.append(Alarm(metric, since, step, change, at_most, did))
        self.seen[step] = now
        self.kept.add(step)
        if self.best != step:
            self.kept.discard(step)
        if not falls:
            return None
        self.alarms.append(min(falls, key=lambda alarm: alarm.at_most))
        return self.alarms[-1]

    def _compared(self, now: Scores) -> Iterator[tuple[str, int, Tensor]]:
        """Yield what is watched, since when, and of each picture what must not be below zero in the mean."""
        for since, scores in self.seen.items():
            for metric in self.settings.gold:
                yield metric, since, now[metric] - scores[metric][: self.rows]
        if (base := self.seen.get(0)) is None:
            return
        room, also = self.settings.room, self.settings.also
        if "drift" in also:
            yield DRIFT, 0, room * base[DIVERSITY][: self.rows] - now[DRIFT]
        for metric in (*[DIVERSITY] * ("diversity" in also), *(LOOKS if "looks" in also else ())):
            before = base[metric][: self.rows]
            spread, moved = before[~before.isnan()].std().item(), now[metric] - before
            yield metric, 0, room * max(spread, LEAST_SPREAD) + moved
            if metric != DIVERSITY:
                yield metric, 0, room * max(spread, LEAST_SPREAD) - moved

    def remember(self, evaluations: Mapping[int, Scores], alarms: Sequence[Mapping[str, Any]], kept: set[int]) -> None:
        """Take what was seen before the run was resumed.

        Evaluations of another config, which do not measure what is watched now, are left out.
        """
        watched = set(self.watched)
        self.seen = {step: scores for step, scores in evaluations.items() if watched <= scores.keys()}
        self.alarms, self.kept = [Alarm(**alarm) for alarm in alarms], kept & self.seen.keys()

    def ending(self, folder: Path) -> str:
        """Return what there is to say of it at the end of a run."""
        gold, count = self.settings.gold[0], len(self.alarms)
        said = (
            f"{count} alarm{'s' * (count != 1)}"
            if count
            else f"{', '.join((*self.settings.gold, *self.settings.also))}: no alarm"
        )
        return f"watch:      {said}; best by {gold}: {folder / f'checkpoint-{self.best}'}"

    def told(self) -> dict[str, object]:
        """Return what was seen, for `summary.json`."""
        return {
            "gold": list(self.settings.gold),
            "also": list(self.settings.also),
            "false_alarms": self.settings.false_alarms,
            "best": self.best,
            "alarms": [asdict(alarm) for alarm in self.alarms],
        }


def watching(trainer: Trainer, folder: Path, done: int) -> Watching | None:
    """Return the watch of a run, with what it saw before the run was resumed; None where the run has none.

    Args:
        trainer: The run, loaded.
        folder: The run's.
        done: Steps done.

    Raises:
        ConfigError: If it is to be watched what was not measured before the run was resumed.
    """
    held_out, world = trainer.held_out, trainer.runtime.world
    watch = None if held_out is None else Watching.of(trainer.run, len(held_out.texts), world.device)
    if watch is None or not done:
        return watch
    known = None
    if trainer.runtime.main:
        found = dict(run_folder.read_evaluations(folder).values())
        seen = {step: dict(result.scores) for step, result in found.items()}
        kept = {step for step in seen if (folder / f"checkpoint-{step}").is_dir()}
        known = (seen, run_folder.read_alarms(folder), kept), found[0].features if 0 in found else None
    known = world.everyone(known)[0]
    assert known is not None
    past, features = known
    if watch.sights is not None:
        if features is None:
            raise ConfigError(
                f"watch.also: {folder} does not hold what pictures were before training, because that was not watched; "
                "leave it out, or start afresh"
            )
        watch.sights.base = features
    watch.remember(*past)
    return watch


def _mean(scores: Tensor) -> float:
    """Return the mean of what was scored; the least there is where nothing was."""
    mean = scores.nanmean().item()
    return -math.inf if math.isnan(mean) else mean
