"""Scores of DPG-Bench's own code and ours, of graphs and answers that are drawn.

Run with `make oracle`. ELLA is cloned into `.oracle-ella` (or stands where `$VISALIGN_ELLA` says).
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reward_models.vlm_rewards.scene_graph import read_graphs, score
from tests.support.environments import cloned

pytestmark = pytest.mark.oracle

SOURCE = "https://github.com/TencentQQGYLab/ELLA"
GRAPHS, PICTURES = 5, 50
COLUMNS = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_scores_are_those_of_its_code(seed: int, tmp_path: Path) -> None:
    folder = cloned(SOURCE, Path(__file__).parents[2] / ".oracle-ella", "VISALIGN_ELLA")
    draw = random.Random(seed)
    count = draw.randint(2, 15)
    needs = [draw.sample(range(1, count + 1), draw.randint(0, min(3, count))) for _ in range(count)]
    rows = [
        f'x,a drawn prompt,,{number},"{", ".join(map(str, those)) or 0}",entity,whole,entity - whole (x),Is {number}?'
        for number, those in enumerate(needs, start=1)
    ]
    table = tmp_path / "graphs.csv"
    table.write_text("\n".join([COLUMNS, "first,another,,1,0,entity,whole,entity - whole (x),Is it?", *rows]))
    answers = [{f"Is {n}?": draw.choice(("yes", "yes", "no")) for n in range(1, count + 1)} for _ in range(PICTURES)]
    (tmp_path / "jobs.json").write_text(json.dumps(answers))
    command = [sys.executable, Path(__file__).with_name("dpg_bench.py"), folder, table, tmp_path / "jobs.json"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    graph = read_graphs(str(table))["a drawn prompt"]
    ours = [
        score(graph, torch.tensor([float(one[asked.question] == "yes") for asked in graph.values()])).item()
        for one in answers
    ]
    assert ours == pytest.approx(json.loads(said.splitlines()[-1]))
