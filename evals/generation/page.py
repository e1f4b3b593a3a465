"""The fourth stage: `eval.json`, and one page that shows it and opens from the disk."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers

from alignment import __version__
from alignment.config import build
from alignment.data.batches import source_of
from alignment.errors import DataError
from alignment.reports.figures import Chart
from alignment.reports.page import PageMedium, shown, template
from alignment.reports.pictures import printable
from evals.generation import charts
from evals.generation.compare import OnSuite, distinct
from evals.generation.plan import EvalPlan
from evals.generation.shelf import write
from evals.generation.table import Table
from evals.generation.verdicts import Change, heard, rounded
from evals.medium import Medium
from evals.suites.base import Suite
from reward_models.base import RewardModel

JSON, PAGE = "eval.json", "report.html"


@dataclass(frozen=True)
class SideBySide:
    """The base's picture and a subject's, of one prompt and noise, and the one that both were made from."""

    prompt: str
    source: PageMedium | None
    base: PageMedium
    final: PageMedium


def as_json(plan: EvalPlan, found: Sequence[OnSuite]) -> dict[str, Any]:
    """Return all that was found, and what it was found with; what is not a finite number is null."""
    first = found[0]
    return finite(
        {
            "says": [beside.says for suite in found for beside in suite.beside.values()],
            "protocol": plan.fixed() | {"pictures_per_prompt": plan.making.pictures, "base": first.base},
            "versions": versions(),
            "subjects": {
                subject.name: dataclasses.asdict(subject)
                | {"kind": subject.kind, "fingerprint": first.tables[subject.name].fingerprint}
                for subject in plan.subjects
            },
            "rewards": {
                title: {
                    "reward": build.written(model, RewardModel),
                    "fingerprint": suite.tables[suite.base].mark(title),
                }
                for suite in found
                for title, model in plan.rewards_of(suite.name).items()
            },
            "extractors": {title: repr(extractor) for title, extractor in plan.extractors.items()},
            "suites": {suite.name: _suite(plan, suite) for suite in found},
        }
    )


def versions() -> dict[str, str]:
    """Return what it ran on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    libraries = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    return {"visalign": __version__, **libraries, "device": device}


def _suite(plan: EvalPlan, suite: OnSuite) -> dict[str, Any]:
    return {
        "suite": build.written(plan.suites[suite.name], Suite),
        "licence": plan.suites[suite.name].licence,
        "prompts": suite.prompts,
        "pictures": suite.pictures,
        "notes": suite.notes,
        "subjects": {name: dataclasses.asdict(standing) for name, standing in suite.standings.items()},
        "published": [dataclasses.asdict(one) for one in plan.suites[suite.name].published],
        "comparisons": {
            name: {
                "against": suite.base,
                "changes": [_change(change) for change in beside.changes],
                "categories": {
                    measure: {name: _change(change) for name, change in changes.items()}
                    for measure, changes in beside.categories.items()
                },
                "looks": [_change(change) for change in beside.looks],
                "drift": {title: dataclasses.asdict(one) for title, one in beside.drift.items()},
                "wins": dict(beside.wins),
                "best": [suite.tables[name].names[row] for row in beside.best],
                "worst": [suite.tables[name].names[row] for row in beside.worst],
            }
            for name, beside in suite.beside.items()
        },
    }


def _change(change: Change) -> dict[str, Any]:
    told = {"verdict": change.verdict, "smallest_difference": change.smallest, "pictures_that_could": change.needed}
    return dataclasses.asdict(change) | told


def finite(value: Any) -> Any:
    """Return it with null for what is not a finite number, as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(plan: EvalPlan, found: Sequence[OnSuite]) -> None:
    """Write `eval.json`."""
    text = json.dumps(as_json(plan, found), indent=2, ensure_ascii=False, allow_nan=False)
    write(plan.output / JSON, f"{text}\n".encode(errors="replace"))


def write_page(plan: EvalPlan, found: Sequence[OnSuite]) -> None:
    """Write `report.html`."""
    page = template("evals.generation", "page_template.html").render(
        name=plan.output.resolve().name,
        says=[
            (name, suite.base, suite.name, heard(beside.changes))
            for suite in found
            for name, beside in suite.beside.items()
        ],
        base=found[0].base,
        subjects=plan.subjects,
        versions=versions(),
        facts=_facts(plan),
        suites=[_shown(plan, suite) for suite in found],
        rounded=rounded,
        protocol=json.dumps(finite(plan.fixed()), indent=2, ensure_ascii=False),
    )
    write(plan.output / PAGE, page.encode(errors="replace"))


def _facts(plan: EvalPlan) -> list[tuple[str, str]]:
    call = ", ".join(f"{key}={value}" for key, value in plan.making.call.items())
    facts = {
        "Seed": str(plan.making.seed),
        "Call": call or "the pipeline's own",
        "Features": ", ".join(plan.extractors) or "none",
    }
    return list(facts.items())


def _shown(plan: EvalPlan, suite: OnSuite) -> dict[str, Any]:
    """Return what the page shows of a suite."""
    return {
        "found": suite,
        "charts": _charts(plan, suite),
        "published": plan.suites[suite.name].published,
        "pairs": {
            name: {
                "best": [_pair(plan, suite, name, row) for row in beside.best],
                "worst": [_pair(plan, suite, name, row) for row in beside.worst],
            }
            for name, beside in suite.beside.items()
        },
    }


def _charts(plan: EvalPlan, suite: OnSuite) -> list[Chart]:
    measures = list(suite.standings[suite.base].scores)
    made = []
    for measure in measures:
        found = {
            name: beside.categories[measure] for name, beside in suite.beside.items() if measure in beside.categories
        }
        if found and all(found.values()):
            made.append(charts.by_category(suite.name, measure, found))
    distances = [title for title, extractor in plan.extractors.items() if not extractor.names]
    if suite.beside and distances:
        made.insert(0, charts.against_distance(suite, measures[0], distances[-1]))
        strengths = {s.name: s.strength for s in plan.subjects if s.strength is not None}
        if len(set(strengths.values())) > 2:
            made.insert(0, charts.by_strength(suite, measures, distances[-1], strengths))
    return made


def _pair(plan: EvalPlan, suite: OnSuite, name: str, row: int) -> SideBySide:
    base, final = suite.tables[suite.base], suite.tables[name]
    prompt = plan.items[suite.name][base.prompts[row]].prompt
    source = source_of(prompt)
    return SideBySide(
        printable(str(prompt)),
        None if source is None else shown(Medium(source.path.name, source.path, source.content).media()),
        _picture(plan, base, row),
        _picture(plan, final, row),
    )


def _picture(plan: EvalPlan, table: Table, row: int) -> PageMedium:
    scores = tuple(
        (name, "not scored" if math.isnan(column[row]) else f"{column[row]:.3g}")
        for name, column in distinct(table.scores).items()
    )
    file = plan.output / table.files[row]
    if not file.is_file():
        raise DataError(f"{file} is gone; bring it back, or make it again: --only generate")
    return shown(Medium.file(file).media(), scores)


def table_of(found: Sequence[OnSuite]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Return the tables of a terminal: a title, and rows of (subject, measure, base, subject's, change, verdict)."""
    made = []
    for suite in found:
        rows: list[tuple[str, ...]] = []
        for name, beside in suite.beside.items():
            for change in beside.changes:
                means = (change.number(change.base.mean), change.number(change.final.mean))
                moved = f"{change.signed(change.change.mean)} {change.ends()}"
                rows.append((name, change.measure, *means, moved, change.verdict))
        if not suite.beside:
            rows = [
                (suite.base, measure, f"{one.mean:.4g}", f"[{one.low:.4g}, {one.high:.4g}]", "", "")
                for measure, one in suite.standings[suite.base].scores.items()
            ]
        title = f"{suite.name}: {suite.prompts} prompts, {suite.pictures} pictures of each; base {suite.base}"
        made.append((title, rows))
    return made
