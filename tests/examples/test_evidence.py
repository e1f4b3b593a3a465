"""The evidence page: data that is what it says, configs that load, and verdicts that follow from the rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignment.config.load import load
from examples.benchmarks.evidence import tasks
from examples.benchmarks.evidence.claims import Claim, read_claims, write_claims
from examples.benchmarks.evidence.run import HERE, ONLINE, TASKS
from examples.benchmarks.gains_page import Row, write_rows
from reward_models.verifiers.scenes import SIDE, grade, parse, read

ROOT = Path(__file__).parents[2]


def test_winners_show_their_captions_and_lie_in_the_lower_half(tmp_path: Path) -> None:
    tasks.write(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "winners.jsonl").read_text().splitlines()]
    pictures = np.stack([np.asarray(Image.open(tmp_path / record["media"])) for record in records])
    sights = read(pictures)
    assert len(records) == tasks.WINNERS
    for record, found in zip(records, sights, strict=True):
        assert grade(parse(record["prompt"]), found)[0] == 1.0
        assert all(sight.y > SIDE / 2 for sight in found)
    for record in map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines()):
        for side, above in (("chosen", False), ("rejected", True)):
            picture = np.asarray(Image.open(tmp_path / record[side]))
            assert tasks.lit(picture[: SIDE // 2]) == above
            assert tasks.lit(picture[SIDE // 2 :]) != above
    again = tmp_path / "again"
    tasks.write(again)
    assert (again / "winners" / "007.png").read_bytes() == (tmp_path / "winners" / "007.png").read_bytes()


def test_every_recipe_loads_and_every_claim_names_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for task in TASKS.values():
        for recipe in task.recipes:
            assert load(HERE / f"{recipe}.yaml").name == recipe
    for claim in read_claims(HERE / "claims.yaml"):
        known = TASKS[claim.task].recipes if claim.task in TASKS else None
        for name in filter(None, (claim.recipe, claim.against)):
            assert claim.task == ONLINE or name in (known or ())


def row(recipe: str, *gains: float) -> Row:
    return Row(recipe, (15,) * len(gains), 9.0, 0.1, 0.2, gains)


def test_a_verdict_takes_five_seeds_and_its_bar(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in ("claims", "task")))
    rows = [row("good", 0.3, 0.31, 0.32, 0.3, 0.31), row("fair", 0.1, 0.1, 0.12, 0.1, 0.1), row("few", 0.9, 0.9)]
    rows += [row("sure", 0.1, 0.2, 0.3, 0.2, 0.2), row("unsure", 0.005, 0.003, 0.003, -0.001, 0.002)]
    write_rows(page, "task", rows, "reward", "recipes", "by whom")
    claims = [
        Claim("a", "x", "task", "good", "fair"),
        Claim("b", "x", "task", "fair", "good"),
        Claim("c", "x", "task", "few", "good"),
        Claim("d", "x", "task", "fair", least=0.1, errors=0.0),
        Claim("e", "x"),
        Claim("f", "x", "task", "sure"),
        Claim("g", "x", "task", "unsure"),
    ]
    write_claims(page, "claims", claims, {"task": page})
    lines = page.read_text().split("<!-- end of claims -->")[0].splitlines()[3:]
    assert [line.split("|")[-2].strip() for line in lines] == [
        "**holds**", "does not hold here", "not tested: 2 of 5 seeds", "**holds**", "not tested",
        "**holds**", "bar reached, inside the interval",
    ]  # fmt: skip
    assert "| `good` | `fair` | +0.204 [" in lines[0]
