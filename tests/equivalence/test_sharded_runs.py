"""Runs whose networks are spread over processes: one process's numbers, its files, and its checkpoints both ways."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.forked import ROOT
from tests.support.ports import free_port
from tests.support.runs import left_by, prepared, train
from tests.support.several import HANG, together

pytestmark = [pytest.mark.multi, pytest.mark.slow(230), pytest.mark.xdist_group("sharded runs")]

ROUNDING = 1e-5  # of weights of unit size, after twelve updates of Adam at 1e-4
RELATIVE = 1e-3  # of numbers for the record; those near 0 are differences of larger ones
KINDS = ("grpo", "nft")  # adapters, and a whole network with two frozen copies
TINY = "optimizer.learning_rate=1e-4"


DIES, LOST = (f"{__name__}:brightness_{how}" for how in ("of_a_process_that_dies", "where_a_machine_is_lost"))
calls = 0


def brightness_of_a_process_that_dies(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward: as in the other runs; process 1 is killed in its second call, and once more in a later one."""
    global calls
    calls += 1
    mark = Path(f"{os.environ['MARK']} {calls - 1}")
    if os.environ["RANK"] == "1" and calls in (2, 5) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels.mean((1, 2, 3, 4))


def brightness_where_a_machine_is_lost(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward: as in the other runs; in the third call on the machine that is lost, nothing is left there."""
    global calls
    calls += 1
    if "LOST" in os.environ and calls == 3:
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels.mean((1, 2, 3, 4))


@pytest.fixture(scope="module")
def work(flux_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs of each kind by one process and by two, whole and resumed, on as many or on others."""
    work = prepared(tmp_path_factory.mktemp("sharded"), flux_folder)
    runs = work / "runs"
    for kind in KINDS:
        assert train(work, kind, f"name={kind}-one", TINY, "output.keep=3") == 0
        for name in ("one to two", "one to one"):
            shutil.copytree(runs / f"{kind}-one", runs / f"{kind}-{name.replace(' ', '-')}")
            shutil.rmtree(runs / f"{kind}-{name.replace(' ', '-')}" / "checkpoint-6")
            (runs / f"{kind}-{name.replace(' ', '-')}" / "latest").write_text("checkpoint-4\n")
    lines = []
    for kind in KINDS:
        config, sharded = f"{work / kind}.yaml", f"parallel.shard=2 {TINY} output.keep=3"
        lines += [f"{config} {sharded} name={kind}-two", f"{config} {sharded} name={kind}-two-to-two steps=4"]
        lines += [f"{config} {sharded} name={kind}-{name} --resume latest" for name in ("two-to-two", "one-to-two")]
    lines.append(f"{work / 'grpo'}.yaml parallel.shard=2 {TINY} name=half policy.autocast=bfloat16 steps=2")
    together(2, "tests.equivalence.sharded_runs", *lines)
    for kind in KINDS:
        shutil.copytree(runs / f"{kind}-two", runs / f"{kind}-two-to-one")
        shutil.rmtree(runs / f"{kind}-two-to-one" / "checkpoint-6")
        for name in ("two-to-one", "one-to-one"):
            assert train(work, kind, f"name={kind}-{name}", TINY, "output.keep=3", "--resume", "latest") == 0
    return work


@pytest.mark.parametrize("name", ["two", "two-to-two", "one-to-two", "two-to-one", "one-to-one"])
@pytest.mark.parametrize("kind", KINDS)
def test_where_the_weights_lie_changes_rounding_only(work: Path, kind: str, name: str) -> None:
    run, one = work / "runs" / f"{kind}-{name}", work / "runs" / f"{kind}-one"
    for path in one.glob("checkpoint-6/**/*.safetensors"):
        if "state" not in path.parts:
            found = load_file(run / path.relative_to(one))
            for key, weight in load_file(path).items():
                torch.testing.assert_close(found[key], weight, rtol=0, atol=ROUNDING)
    theirs, ours = left_by(run), left_by(one)
    for their_line, line in zip(theirs["metrics"], ours["metrics"], strict=True):
        assert their_line == pytest.approx(line, rel=RELATIVE, abs=RELATIVE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_run_that_is_resumed_is_the_same_to_the_bit(work: Path, kind: str) -> None:
    whole, resumed = (left_by(work / "runs" / f"{kind}-{name}") for name in ("two", "two-to-two"))
    assert whole["tensors"] == resumed["tensors"]
    assert whole["metrics"] == resumed["metrics"]


class Machine:
    """A launcher on a "machine" of this one that has one process; several of them meet at an address.

    Args:
        where: Port of that address.
        machines: How many there are, or the least and the most, as torchrun reads it.
        log: Where it prints to.
        words: The command line of the run.
        more: Of the environment.
    """

    def __init__(self, where: int, machines: str, log: Path, *words: str, **more: str) -> None:
        self.log = log
        meeting = f"--rdzv_backend c10d --rdzv_endpoint 127.0.0.1:{where} --rdzv_conf last_call_timeout=5"
        alone = "--nproc_per_node 1 --local-addr 127.0.0.1 --max-restarts 3"
        launcher = f"-m torch.distributed.run --nnodes {machines} {alone} {meeting} -m alignment.train"
        # Else torchrun meets the addresses of those that died.
        environment = {**os.environ, **more, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *launcher.split(), *words],
                env={**environment, "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def ended(self) -> None:
        """Wait for its end, which has to be a good one."""
        assert self.process.wait(HANG) == 0, self.log.read_text()


def answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_launchers_that_start_a_run_again_end_where_an_undisturbed_one_does(work: Path) -> None:
    """A process of the second of two machines is killed twice."""
    config, mark, port = str(work / "grpo.yaml"), work / "killed", free_port()
    words = ["parallel.shard=2", TINY, "output.keep=3", "name=again", f"source.reward={{type: function, call: {DIES}}}"]
    machines = [
        Machine(port, "2", work / f"again{k}.log", config, *words, "--resume", "auto", MARK=str(mark)) for k in range(2)
    ]
    for machine in machines:
        machine.ended()
    assert sorted(path.name for path in work.glob("killed*")) == ["killed 1", "killed 4"]
    undisturbed, again = (left_by(work / "runs" / name) for name in ("grpo-two", "again"))
    assert again["tensors"] == undisturbed["tensors"]
    assert again["metrics"] == undisturbed["metrics"]


def test_a_machine_that_is_lost_leaves_the_run_to_the_others(work: Path) -> None:
    """One of two goes on with all weights, from where both had come to."""
    port, run = free_port(), work / "runs" / "alone"
    reward = f"source.reward={{type: function, call: {LOST}}}"
    words = [
        str(work / "grpo.yaml"),
        "parallel.shard=auto",
        TINY,
        "output.save_every=1",
        "name=alone",
        "timeout=20",
        reward,
    ]
    first = Machine(port, "1:2", work / "alone0.log", *words, "--resume", "auto")
    while not answers(port):  # the machine at which they meet is not the one that may be lost
        assert first.process.poll() is None, first.log.read_text()
        time.sleep(0.1)
    second = Machine(port, "1:2", work / "alone1.log", *words, LOST="yes")
    first.ended()
    assert second.process.wait() == -signal.SIGKILL
    assert re.search(r"process \d of 2 .* is lost: no sign of life", first.log.read_text())
    for path in (work / "runs" / "grpo-one" / "checkpoint-6").glob("*.safetensors"):
        found = load_file(run / "checkpoint-6" / path.name)
        for key, weight in load_file(path).items():
            torch.testing.assert_close(found[key], weight, rtol=0, atol=ROUNDING)


def test_half_precision_is_proved_and_exact_at_first(work: Path) -> None:
    lines = [json.loads(line) for line in (work / "runs" / "half" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(line["ratio/first_error_max"] < 1e-3 for line in lines)  # bfloat16, with other rows in the update


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_wrote_its_part(work: Path, kind: str) -> None:
    parts = list((work / "runs" / f"{kind}-two" / "checkpoint-6" / "state" / "parts").iterdir())
    sizes = [sum(z.numel() for z in load_file(part).values()) for part in parts]
    assert len(parts) == 2
    assert max(sizes) < 0.6 * sum(sizes)
