"""Under a launcher of several processes: one message, in its own report too, and the exit codes stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignment.cli import main as cli
from alignment.cli.launcher import FILE, unused_gpus

ROOT = Path(__file__).parents[3]
SAYS = "there is no such config file"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_prints_and_each_leaves_its_reason(
    rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FILE, str(tmp_path / "error.json"))
    monkeypatch.setenv("RANK", rank)
    assert cli.run(["train", "nowhere.yaml"]) == 2
    assert (SAYS in capsys.readouterr().err) is (rank == "0")
    reason = json.loads((tmp_path / "error.json").read_text())["message"]
    assert SAYS in reason["message"]
    assert reason["extraInfo"]["timestamp"].isdecimal()


def test_without_a_launcher_that_listens_every_process_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(FILE, raising=False)
    monkeypatch.setenv("RANK", "1")
    assert cli.run(["train", "nowhere.yaml"]) == 2
    assert SAYS in capsys.readouterr().err


@pytest.mark.multi
@pytest.mark.slow
def test_torchruns_report_ends_with_the_message() -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [sys.executable, *launch, "-m", "alignment.train", "nowhere.yaml"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    report = done.stderr.partition("Root Cause")[2]
    assert SAYS in report, done.stderr
    assert "exitcode  : 2" in report
    # The launcher may end the first process before it prints; the other never does.
    assert sum(line.startswith("visalign: ") for line in done.stderr.splitlines()) <= 1


@pytest.mark.parametrize(
    ("gpus", "device", "launched", "says"),
    [
        (
            8,
            "auto",
            False,
            "one of 8 GPUs. For all: torchrun --nproc_per_node 8 -m alignment.train a.yaml",
        ),
        (8, "auto", True, ""),
        (8, "cpu", False, ""),
        (1, "auto", False, ""),
    ],
)
def test_gpus_that_a_run_leaves_unused_are_named(
    gpus: int, device: str, launched: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched:
        monkeypatch.setenv("WORLD_SIZE", "8")
    assert unused_gpus("a.yaml", device).removeprefix("This run uses ") == says
