"""The features of the content-debiased FVD by its authors' code and ours, with weights by their names.

Run with `make oracle`. It is cloned into `.oracle-cdfvd` (or stands where `$VISALIGN_CDFVD` says).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.alignment.features.test_features import CPU, videomae
from tests.support.environments import cloned

pytestmark = pytest.mark.oracle

SOURCE = "https://github.com/songweige/content-debiased-fvd"
WIDTH, DEPTH = 64, 2
ROUNDING = 1e-5  # of float32, through two layers


@pytest.mark.parametrize("frames", [16, 12, 4])
@torch.no_grad()
def test_features_are_those_of_the_authors(frames: int, tmp_path: Path) -> None:
    folder = cloned(SOURCE, Path(__file__).parents[2] / ".oracle-cdfvd", "VISALIGN_CDFVD")
    extractor = videomae(tmp_path, WIDTH, DEPTH)
    state = torch.load(Path(extractor.weights), weights_only=True)["module"]
    levels = torch.randint(
        0, 256, (2, frames, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    torch.save({"state": state, "width": WIDTH, "depth": DEPTH, "clips": levels}, tmp_path / "jobs.pt")
    command = [sys.executable, Path(__file__).with_name("videomae.py"), folder, tmp_path / "jobs.pt"]
    subprocess.run(command, check=True)
    theirs = torch.load(tmp_path / "jobs.pt", weights_only=True)
    ours = extractor.load(device=CPU)(levels.permute(0, 1, 4, 2, 3).float() / 255)
    torch.testing.assert_close(ours, theirs, atol=ROUNDING, rtol=ROUNDING)
