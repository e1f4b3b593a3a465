"""What is known of a subject's pictures on a suite, in the order of their rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alignment.errors import DataError
from evals.generation.plan import EvalPlan
from evals.generation.subjects import REFERENCE


@dataclass(frozen=True)
class Table:
    """A subject on a suite.

    Attributes:
        plan: The comparison.
        subject: Its name, or the reference's.
        suite: The suite's.
    """

    plan: EvalPlan
    subject: str
    suite: str

    @functools.cached_property
    def prompts(self) -> list[int]:
        """Number of each row's prompt."""
        return [row.item for unit in self.plan.units_of(self.subject, self.suite) for row in unit.rows]

    @functools.cached_property
    def names(self) -> list[str]:
        """Name of each row."""
        return [row.name for unit in self.plan.units_of(self.subject, self.suite) for row in unit.rows]

    @functools.cached_property
    def files(self) -> list[str]:
        """File of each row, from the output's folder."""
        found: list[str] = []
        for unit in self.plan.units_of(self.subject, self.suite):
            known = self.plan.shelf("made", self.subject, self.suite).get(unit)
            if known is None:
                raise self._lacks("pictures")
            found += known["files"]
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """What made the pictures."""
        known = self.plan.shelf("made", self.subject, self.suite).get(self.plan.units_of(self.subject, self.suite)[0])
        return "" if known is None else known["fingerprint"]

    @functools.cached_property
    def scores(self) -> Mapping[str, np.ndarray]:
        """Scores of each row by reward, and by "reward/part"; NaN where there is none."""
        return {name: column for title in self.plan.rewards_of(self.suite) for name, column in self._of(title).items()}

    @functools.cached_property
    def reasons(self) -> Mapping[str, str]:
        """Why rows have no score, by "reward, row"."""
        found = {}
        for title in self.plan.rewards_of(self.suite):
            shelf = self.plan.shelf("scores", title, self.subject, self.suite)
            for unit in self.plan.units(self.suite):
                known = shelf.get(unit) or {"reasons": {}}
                found |= {f"{title}, {row}": reason for row, reason in known["reasons"].items()}
        return found

    def _of(self, title: str) -> dict[str, np.ndarray]:
        shelf = self.plan.shelf("scores", title, self.subject, self.suite)
        known = [(len(unit.rows), shelf.get(unit)) for unit in self.plan.units(self.suite)]
        said = [(count, found["scores"]) for count, found in known if found is not None]
        if len(said) < len(known):
            raise self._lacks("scores")
        return {
            f"{title}/{part}" if part else title: np.asarray(
                [math.nan if value is None else value for count, one in said for value in one.get(part, [None] * count)]
            )
            for part in dict.fromkeys(part for _, one in said for part in one)
        }

    def features(self, title: str) -> np.ndarray:
        """Return the features of each row, `[n, d]` float32."""
        shelf, found = self.plan.shelf("features", title, self.subject, self.suite), []
        for unit in self.plan.units_of(self.subject, self.suite):
            rows = shelf.tensor(unit)
            if rows is None:
                raise self._lacks("features")
            found.append(rows.numpy())
        return np.concatenate(found)

    def mark(self, title: str) -> str:
        """Return the fingerprint of a reward."""
        known = self.plan.shelf("scores", title, self.subject, self.suite).get(self.plan.units(self.suite)[0])
        return "" if known is None else known["fingerprint"]

    def _lacks(self, what: str) -> DataError:
        stage = "generate" if what == "pictures" else "score"
        return DataError(
            f"{what} of {self.subject} on {self.suite} are not all there; run the stage before: --only {stage}"
        )


def tables(plan: EvalPlan, suite: str) -> dict[str, Table]:
    """Return the subjects on a suite, by name, and the reference where there is one."""
    names = [subject.name for subject in plan.subjects]
    return {name: Table(plan, name, suite) for name in [*names, *([REFERENCE] if plan.has_reference(suite) else [])]}
