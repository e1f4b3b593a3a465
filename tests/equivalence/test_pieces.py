"""Small things that only several processes can show."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignment.checkpoints.parts import read_parts
from alignment.training.runtime import optimizers
from tests.equivalence import pieces
from tests.equivalence.test_processes import launched, torchrun
from tests.support.tiny import tiny_flux

pytestmark = [pytest.mark.multi, pytest.mark.slow(25), pytest.mark.xdist_group("pieces")]

ROUNDING = 1e-6  # of weights of unit size: every number is computed as on one process
ROOM = 1.5  # a block is in memory before it is divided, and allocators keep some of what was free
CODE = 1  # a number between two codes may be rounded to either


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    pipe = tiny_flux()
    wide = {"num_attention_heads": 4, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)}
    pipe.register_modules(transformer=type(pipe.transformer).from_config(pipe.transformer.config, num_layers=3, **wide))
    pipe.save_pretrained(folder / "pipeline")
    script = str(Path(__file__).with_name("pieces.py"))
    ended = launched(*torchrun(2), script, str(folder), str(folder / "pipeline"))
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel says there what lies in files")
def test_a_process_takes_its_part_of_the_memory_to_load_a_network(done: Path) -> None:
    for taken in json.loads((done / "loaded.json").read_text()):
        assert taken["network"] > 100e6
        assert taken["network"] / 2 < taken["most"] < ROOM * taken["network"] / 2


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
