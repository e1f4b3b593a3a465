"""Small things that only several processes can show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignment.checkpoints.parts import read_parts
from alignment.training.runtime import optimizers
from tests.equivalence import pieces
from tests.equivalence.test_processes import launched, torchrun

pytestmark = [pytest.mark.multi, pytest.mark.slow, pytest.mark.xdist_group("pieces")]

ROUNDING = 1e-6  # of weights of unit size: every number is computed as on one process
CODE = 1  # a number between two codes may be rounded to either


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    ended = launched(*torchrun(2), str(Path(__file__).with_name("pieces.py")), str(folder))
    assert ended.returncode == 0, ended.stderr
    return folder


def test_moments_of_8_bits_have_the_same_blocks_on_any_number_of_processes(done: Path) -> None:
    alone, kept = pieces.learned(None)
    for name, weight in load_file(done / "eight.safetensors").items():
        torch.testing.assert_close(weight, alone[name].detach(), rtol=0, atol=ROUNDING)
    read = pieces.weights(None)
    there = optimizers.moments(pieces.EIGHT, list(read.values()), optimizers.make(pieces.EIGHT, read).state)
    read_parts(done / "eight", there)  # written by two, read by one
    assert there.keys() == kept.keys()
    for name, z in kept.items():
        if name.endswith("codes"):
            assert (there[name].int() - z.int()).abs().max() <= CODE
        else:
            torch.testing.assert_close(there[name], z, rtol=1e-5, atol=1e-7)
