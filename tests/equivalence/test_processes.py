"""How many processes there are changes an update by rounding only, whatever launched them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.equivalence import families
from tests.equivalence.two_processes import CASES, Outcome, outcome, run_of, write_data
from tests.support.runs import left_by, prepared, train
from tests.support.served import served
from tests.support.several import together
from tests.support.toy import REWARD, saved, trainer_of

ROOT = Path(__file__).parents[2]
ROUNDING = 2e-5  # of weights of unit size: float32 sums in another order, six updates of Adam at 1e-3
RELATIVE = 1e-3  # of numbers for the record; those near 0 are differences of larger ones
ACCELERATE = ("accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes")


def torchrun(processes: int) -> tuple[str, ...]:
    return ("torch.distributed.run", "--standalone", "--nproc_per_node", str(processes))


def launched(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a module in a process of its own, in an environment with `more` in it."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more},
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


# (processes, among how many the networks are spread, in which cases): plain, sharded, and two sets of two.
WORLDS: dict[str, tuple[int, int, Sequence[str]]] = {
    "two": (2, 1, tuple(CASES)),
    "two, sharded": (2, 2, tuple(CASES)),
    "four, in two sets": (4, 2, ("transitions", "branch", "nft", "direct", "semi")),
}
BOTH = families.Case.read("flux-grpo-full", shard=2, context=2)
"""On the four: each holds half of the network, and two of them work at the same samples."""
RUNS = [(world, name) for world, (_, _, names) in WORLDS.items() for name in names]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    families.write(folder)
    return folder


@pytest.fixture(scope="module")
def several(folder: Path, pipelines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what several processes wrote, a folder per world."""
    output = tmp_path_factory.mktemp("several")
    for world, (processes, shard, names) in WORLDS.items():
        (output / world).mkdir()
        with served(REWARD) as url:
            where = (str(folder), str(output / world), url)
            more = (str(pipelines), *([str(BOTH)] if processes == 4 else []))
            together(processes, "tests.equivalence.two_processes", *where, str(shard), ",".join(names), *more)
    return output


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Outcome]:
    """Return what one process comes to, by case."""
    return {name: outcome(trainer_of(run_of(folder, name))) for name in CASES}


@pytest.mark.multi
@pytest.mark.slow(300)
@pytest.mark.xdist_group("several processes")  # which are started once
@pytest.mark.parametrize(("world", "name"), RUNS)
def test_several_processes_learn_what_one_learns(one: dict[str, Outcome], several: Path, world: str, name: str) -> None:
    weights, told = one[name]
    theirs = load_file(several / world / f"{name}.safetensors")
    they_told = json.loads((several / world / f"{name}.json").read_text())
    assert theirs.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(theirs[key], weight, rtol=0, atol=ROUNDING)
    for line, their_line in zip(told["metrics"], they_told["metrics"], strict=True):
        assert their_line == pytest.approx(line, rel=RELATIVE, abs=RELATIVE)
    assert they_told["seeds"] == told["seeds"]
    assert they_told["scores"] == pytest.approx(told["scores"], abs=10 * ROUNDING)


@pytest.mark.multi
@pytest.mark.slow(300)
@pytest.mark.xdist_group("several processes")  # which are started once
@pytest.mark.parametrize(("world", "name"), RUNS)
def test_a_gradient_broken_on_one_process_is_left_out_on_all(several: Path, world: str, name: str) -> None:
    assert set(json.loads((several / world / f"{name}.json").read_text())["skipped on all"]) == {True}


@pytest.mark.multi
@pytest.mark.slow(300)
@pytest.mark.xdist_group("several processes")  # which are started once
def test_weights_are_spread_and_tokens_divided_at_once(pipelines: Path, several: Path) -> None:
    weights, _ = families.outcome(pipelines, BOTH.alone)
    theirs = load_file(several / "four, in two sets" / f"{BOTH}.safetensors")
    assert theirs.keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(theirs[key], weight, rtol=0, atol=ROUNDING)


@pytest.fixture(scope="module")
def work(flux_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("launched"), flux_folder)


@pytest.mark.multi
@pytest.mark.slow(50)
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
@pytest.mark.slow(35)
def test_torchrun_launches_the_module_on_two_processes(work: Path) -> None:
    config, one_a_call = str(work / "grpo.yaml"), "source.prompts_per_call=1"
    done = launched(*torchrun(2), "-m", "alignment.train", config, one_a_call, "name=two")
    assert done.returncode == 0, done.stderr
    assert train(work, "grpo", one_a_call, "name=one") == 0
    two, one = (left_by(work / "runs" / name) for name in ("two", "one"))
    assert two["tensors"].keys() == one["tensors"].keys()
    for theirs, ours in zip(two["metrics"], one["metrics"], strict=True):
        assert theirs == pytest.approx(ours, rel=RELATIVE, abs=RELATIVE)
    for name, scores in one["evaluations"].items():
        assert two["evaluations"][name] == {"reward": pytest.approx(scores["reward"], abs=10 * ROUNDING)}
    assert train(work, "grpo", one_a_call, "name=two", "--resume", "latest") == 0  # on another number of processes
