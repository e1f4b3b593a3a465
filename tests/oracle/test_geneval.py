"""GenEval's verdicts and ours, on ten thousand scenes, and every prompt of the benchmark as it means it.

Run with `make oracle`. GenEval is cloned into `.oracle-geneval` (or stands where `$VISALIGN_GENEVAL` says); the part of
its code that judges runs by itself, on detections that are drawn by chance.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.suites.pictures.geneval import GenEval
from reward_models.verifiers.geneval_rules import COLOURS, Clause, Wish, judge, parse
from tests.support.environments import cloned

pytestmark = pytest.mark.oracle

SOURCE = "https://github.com/djghosh13/geneval"
SCENES = 10_000
RIGHT = 0.2
"""Share of scenes that are right at least, and that are wrong, or they would tell nothing."""


@pytest.fixture(scope="module")
def geneval() -> Path:
    """Return GenEval's folder, cloned where there is none."""
    return cloned(SOURCE, Path(__file__).parents[2] / ".oracle-geneval", "VISALIGN_GENEVAL")


@pytest.fixture(scope="module")
def metadata(geneval: Path) -> list[dict[str, Any]]:
    """Return what each of its prompts asks for."""
    file = geneval / "prompts" / "evaluation_metadata.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def meant(told: dict[str, Any]) -> Wish:
    include = [
        Clause(c["class"], c["count"], c.get("color"), tuple(c["position"]) if "position" in c else None)
        for c in told["include"]
    ]
    return Wish(tuple(include), tuple(Clause(c["class"], c["count"]) for c in told.get("exclude", ())))


def test_every_prompt_is_read_as_it_is_meant(geneval: Path, metadata: list[dict[str, Any]]) -> None:
    items = GenEval(str(geneval)).items()
    assert len(items) == len(metadata) == 553
    for item, told in zip(items, metadata, strict=True):
        assert parse(str(item.prompt)) == meant(told)
        assert item.category == told["tag"]


def scene(told: dict[str, Any], draw: np.random.Generator) -> dict[str, Any]:
    """Return detections that are often, but not always, what was asked for."""
    boxes, colours = {}, {}
    for clause in told["include"]:
        count = max(0, clause["count"] + int(draw.choice([-1, 0, 0, 0, 0, 1])))
        corners = draw.uniform(0, 400, (count, 2)).round(1)
        sizes = draw.uniform(5, 200, (count, 2)).round(1)
        sure = np.sort(draw.uniform(0.3, 1, count))[::-1]
        boxes[clause["class"]] = np.concatenate([corners, corners + sizes, sure[:, None]], axis=1).tolist()
        wanted = clause.get("color", "red")
        colours[clause["class"]] = [
            str(draw.choice(COLOURS)) if draw.random() < 0.1 else wanted for _ in range(count)
        ]  # fmt: skip
    return {"metadata": told, "boxes": boxes, "colours": colours}


def test_verdicts_are_the_benchmarks(geneval: Path, metadata: list[dict[str, Any]], tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    scenes = [scene(metadata[int(draw.integers(len(metadata)))], draw) for _ in range(SCENES)]
    (tmp_path / "jobs.json").write_text(json.dumps(scenes), encoding="utf-8")
    command = [sys.executable, Path(__file__).with_name("geneval.py"), geneval, tmp_path / "jobs.json"]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ours = [
        judge(
            parse(one["metadata"]["prompt"]),
            one["boxes"],
            lambda kind, count, one=one: one["colours"][kind][:count],
        ).correct
        for one in scenes
    ]
    assert RIGHT < np.mean(theirs) < 1 - RIGHT
    differing = [one["metadata"]["prompt"] for one, a, b in zip(scenes, ours, theirs, strict=True) if a != b]
    assert not differing, f"{len(differing)} of {SCENES}: {differing[:3]}"
