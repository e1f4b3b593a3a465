"""How many processes there are changes an update by rounding only, whatever launched them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.equivalence.two_processes import CASES, outcome, run_of, write_data
from tests.support.runs import left_by, prepared, train
from tests.support.served import served
from tests.support.toy import REWARD, saved, trainer_of

ROOT = Path(__file__).parents[2]
ROUNDING = 2e-5  # of weights of unit size: float32 sums in another order, six updates of Adam at 1e-3
RELATIVE = 1e-3  # of numbers for the record; those near 0 are differences of larger ones
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes")


def launched(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved(tmp_path_factory.mktemp("toy"), updates=100)
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def two(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what two processes wrote."""
    output = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    with served(REWARD) as url:
        done = launched(*TORCHRUN, str(script), str(folder), str(output), url)
    assert done.returncode == 0, done.stderr
    return output


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.xdist_group("two processes")  # which are started once
@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(folder: Path, two: Path, name: str) -> None:
    weights, told = outcome(trainer_of(run_of(folder, name)))
    theirs, they_told = load_file(two / f"{name}.safetensors"), json.loads((two / f"{name}.json").read_text())
    assert theirs.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(theirs[key], weight, rtol=0, atol=ROUNDING)
    for line, their_line in zip(told["metrics"], they_told["metrics"], strict=True):
        assert their_line == pytest.approx(line, rel=RELATIVE, abs=RELATIVE)
    assert they_told["seeds"] == told["seeds"]
    assert they_told["scores"] == pytest.approx(told["scores"], abs=10 * ROUNDING)


@pytest.mark.multi
@pytest.mark.slow
@pytest.mark.xdist_group("two processes")  # which are started once
@pytest.mark.parametrize("name", CASES)
def test_a_gradient_broken_on_one_process_is_left_out_on_all(two: Path, name: str) -> None:
    assert json.loads((two / f"{name}.json").read_text())["skipped on all"] == [True, True]


@pytest.fixture(scope="module")
def work(flux_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("launched"), flux_folder)


@pytest.mark.multi
@pytest.mark.slow
def test_accelerate_launches_the_module(work: Path) -> None:
    command = ("-m", "alignment.train", str(work / "nft.yaml"))
    done = launched(*ACCELERATE, "1", *command, "name=accelerated")
    assert done.returncode == 0, done.stderr
    assert train(work, "nft") == 0
    assert left_by(work / "runs" / "accelerated") == left_by(work / "runs" / "run")
    done = launched(*ACCELERATE, "2", *command, "name=two")
    assert done.returncode != 0
    assert "torchrun --nproc_per_node N" in done.stderr
    assert "alignment/" not in done.stderr  # no traceback of ours
    assert not (work / "runs" / "two").exists()


@pytest.mark.multi
@pytest.mark.slow
def test_torchrun_launches_the_module_on_two_processes(work: Path) -> None:
    config, one_a_call = str(work / "grpo.yaml"), "source.prompts_per_call=1"
    done = launched(*TORCHRUN, "-m", "alignment.train", config, one_a_call, "name=two")
    assert done.returncode == 0, done.stderr
    assert train(work, "grpo", one_a_call, "name=one") == 0
    two, one = (left_by(work / "runs" / name) for name in ("two", "one"))
    assert two["tensors"].keys() == one["tensors"].keys()
    for theirs, ours in zip(two["metrics"], one["metrics"], strict=True):
        assert theirs == pytest.approx(ours, rel=RELATIVE, abs=RELATIVE)
    for name, scores in one["evaluations"].items():
        assert two["evaluations"][name] == {"reward": pytest.approx(scores["reward"], abs=10 * ROUNDING)}
    # The number of processes is part of a run: which prompts meet in a call may depend on it.
    assert train(work, "grpo", one_a_call, "name=two", "--resume", "latest") == 2
