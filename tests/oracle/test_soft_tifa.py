"""Soft-TIFA of GenEval 2 and ours, by a tiny Qwen3-VL with random weights, on the questions of its own file.

Run with `make oracle`. GenEval 2 is cloned into `.oracle-geneval2` (or stands where `$VISALIGN_GENEVAL2` says).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from evals.suites.pictures.geneval2 import GenEval2
from reward_models.base import Media, load_reward
from reward_models.vlm_rewards.soft_tifa import NUMBERS, SoftTIFA, read_questions, spellings
from reward_models.vlms.local import Local
from tests.support.environments import cloned
from tests.support.named_weights import picture
from tests.support.tiny_vlms import save_tiny_vlm

pytestmark = pytest.mark.oracle

SOURCE = "https://github.com/facebookresearch/GenEval2"
EVERY = 100  # of its 800 prompts
WORDS = [spelling for count in NUMBERS for spelling in spellings("How many", count) if not spelling[-1].isdecimal()]
COUNTS = sorted(WORDS)  # those with a space before them are put together first
"""Tokens, as in the real vocabulary: one that begins several spellings counts once here, and once for each there."""
SIDE = 64  # where nothing is scaled: theirs scales levels, ours numbers
ROUNDING = 1e-5  # relative, of probabilities from float32 logits of padded rows


def test_probabilities_are_those_of_its_code(tmp_path: Path) -> None:
    folder = cloned(SOURCE, Path(__file__).parents[2] / ".oracle-geneval2", "VISALIGN_GENEVAL2")
    file = str(folder / "geneval2_data.jsonl")
    model = save_tiny_vlm(tmp_path / "model", "qwen3_vl", also=COUNTS)
    asked, levels = read_questions(file), torch.from_numpy(picture(3)[:SIDE, :SIDE].copy())
    prompts = [item.prompt for item in GenEval2(str(folder)).items()][::EVERY]
    Image.fromarray(levels.numpy()).save(tmp_path / "shown.png")
    (tmp_path / "jobs.json").write_text(json.dumps([[str(tmp_path / "shown.png"), asked[p]] for p in prompts]))
    command = [sys.executable, Path(__file__).with_name("soft_tifa.py"), folder, model, tmp_path / "jobs.json"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    theirs = [torch.tensor(row) for row in json.loads(said.splitlines()[-1])]
    scorer = load_reward(SoftTIFA(Local(str(model)), file), device=torch.device("cpu"))
    pixels = (levels.permute(2, 0, 1).float() / 255).expand(len(prompts), 1, -1, -1, -1)
    found = scorer(media=Media(pixels), prompts=prompts)
    assert found.parts["mean"].tolist() == pytest.approx([row.mean().item() for row in theirs], rel=ROUNDING)
    assert found.value.tolist() == pytest.approx([row.log().mean().exp().item() for row in theirs], rel=ROUNDING)
    assert len(set(found.value.tolist())) == len(prompts)
