"""Every family of objectives, adapters and all weights: spread networks learn what one process learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.equivalence.families import FAMILIES, Case, outcome, write
from tests.equivalence.test_processes import launched, torchrun

pytestmark = [
    pytest.mark.multi,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:policy.check_latents is off"),  # the VAEs have random weights
]

ROUNDING = 1e-5  # of weights of unit size, after three updates of Adam at 1e-4
EXACT = 1e-6  # the first ratio of a step, in float32
SHORT = [
    Case.read(name)
    for name in (
        "flux-grpo-lora", "flux-vipo-full", "flux-nft-full", "flux-awm-lora", "flux-dpo-lora", "flux-seppo-full",
        "flux-draft-lora", "wan-grpo-full", "wan-nft-lora", "wan-draft-full", "wan_2_2-grpo-lora",
    )
]  # fmt: skip
ALL = [
    *(Case(pipeline, family, lora) for pipeline in ("flux", "wan") for family in FAMILIES for lora in (True, False)),
    Case("wan_2_2", "grpo", lora=False),
]
LONG = [case for case in ALL if case not in SHORT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    write(folder)
    return folder


def spread(folder: Path, cases: list[Case], processes: int, shard: int) -> Path:
    output = folder / f"{processes} {shard} {len(cases)}"
    output.mkdir()
    script = Path(__file__).with_name("families.py")
    done = launched(*torchrun(processes), str(script), str(folder), str(output), str(shard), *map(str, cases))
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def short(folder: Path) -> Path:
    return spread(folder, SHORT, 2, 2)


@pytest.fixture(scope="module")
def long(folder: Path) -> Path:
    return spread(folder, LONG, 2, 2)


@pytest.fixture(scope="module")
def hybrid(folder: Path) -> Path:
    return spread(folder, ALL, 4, 2)


def compare(folder: Path, spread: Path, case: Case) -> None:
    weights, lines = outcome(folder, case, 1)
    theirs, their_lines = load_file(spread / f"{case}.safetensors"), json.loads((spread / f"{case}.json").read_text())
    assert theirs.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(theirs[key], weight, rtol=0, atol=ROUNDING)
    assert len(lines) == len(their_lines)
    for line in their_lines:
        assert line.get("ratio/first_error_max", 0.0) < EXACT


@pytest.mark.xdist_group("families")  # whose processes are started once
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_a_family_learns_the_same_where_networks_are_spread(folder: Path, short: Path, case: Case) -> None:
    compare(folder, short, case)


@pytest.mark.long
@pytest.mark.parametrize("case", LONG, ids=str)
def test_so_do_the_other_ways_to_combine_them(folder: Path, long: Path, case: Case) -> None:
    compare(folder, long, case)


@pytest.mark.long
@pytest.mark.parametrize("case", ALL, ids=str)
def test_so_does_everything_in_two_sets_of_two(folder: Path, hybrid: Path, case: Case) -> None:
    compare(folder, hybrid, case)
