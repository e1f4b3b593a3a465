"""VBench's formulas and ours, on features and pixels that are given.

Run with `make oracle`. VBench is cloned into `.oracle-vbench` (or stands where `$VISALIGN_VBENCH` says); what scores
runs by itself, without its networks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reward_models.base import Media
from reward_models.clip_family.consistency import alike
from reward_models.measures.flicker import Flicker
from tests.support.environments import cloned

pytestmark = pytest.mark.oracle

SOURCE = "https://github.com/Vchitect/VBench"
CLIPS = 50
ROUNDING = 1e-6  # of float32, and of sums in another order


@pytest.fixture(scope="module")
def vbench() -> Path:
    """Return VBench's folder, cloned where there is none."""
    return cloned(SOURCE, Path(__file__).parents[2] / ".oracle-vbench", "VISALIGN_VBENCH")


def test_consistency_and_flicker_are_vbenchs(vbench: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    # With what frames share, and without: there cosines fall below 0.
    features = [
        torch.randn(2 + n % 9, 32, generator=draw) + (n % 2) * torch.randn(32, generator=draw) for n in range(CLIPS)
    ]
    levels = [torch.randint(0, 256, (2 + n % 5, 12, 16, 3), generator=draw, dtype=torch.uint8) for n in range(CLIPS)]
    torch.save({"features": features, "levels": levels}, tmp_path / "jobs.pt")
    command = [sys.executable, Path(__file__).with_name("vbench.py"), vbench, tmp_path / "jobs.pt"]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    scorer = Flicker().load(device=torch.device("cpu"))
    media = [Media(one.permute(0, 3, 1, 2)[None].float() / 255) for one in levels]
    assert [alike(one[None]).item() for one in features] == pytest.approx(theirs["consistency"], abs=ROUNDING)
    assert [scorer(media=one, prompts=[""]).value.item() for one in media] == pytest.approx(
        theirs["flicker"], abs=ROUNDING
    )
