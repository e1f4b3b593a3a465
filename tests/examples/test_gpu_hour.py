"""The benchmark of a GPU: its parts on a CPU at tiny sizes, what it keeps, and what it shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from examples.benchmarks import gpu_hour
from examples.benchmarks.gpu_step import BACKENDS, CASES, FIRST_ERROR, PHASES, Case, measure

ONE_THREAD = 1e-5  # of a first ratio, in float32, on another number of rows


@pytest.fixture(scope="module")
def found(flux_folder: Path) -> dict[str, object]:
    """Return what a case of the tiny FLUX comes to, blocks traced and not compiled."""
    call = {"height": 16, "width": 16, "num_inference_steps": 4, "max_sequence_length": 24}
    policy = {"dtype": "float32", "autocast": None}
    return measure(Case(str(flux_folder), call, group=2, rows=(1, 2), policy=policy, device="cpu"), compiler="eager")


def test_a_step_tells_time_by_phase_and_first_ratios(found: dict[str, object]) -> None:
    assert set(found) == {"measured", "first ratio by rows", "by attention", "compiled"}
    measured = found["measured"]
    assert set(measured["seconds"]) == set(PHASES)
    assert all(error < ONE_THREAD for error in [measured[FIRST_ERROR], *found["first ratio by rows"].values()])
    assert set(found["by attention"]) == set(BACKENDS)
    assert found["by attention"]["native"][FIRST_ERROR] < ONE_THREAD
    assert isinstance(found["by attention"]["_native_efficient"], str)  # of GPUs alone, and says so
    assert found["compiled"][FIRST_ERROR] < ONE_THREAD


def test_cases_are_of_sizes_that_ship(tmp_path: Path) -> None:
    for case in CASES.values():
        run = case.run(tmp_path, max(case.rows))
        assert run.policy.pipeline == case.pipeline
        assert (run.policy.lora is not None) == case.lora


def test_the_page_shows_all_of_it(found: dict[str, object]) -> None:
    planned = {"planned": {"bytes": 2e9, "flops": 1e12, "peak FLOP/s": 1e15}, "mfu": 0.25}
    kernel = {
        "fused, ms": 1,
        "eager, ms": 2,
        "torch.compile, ms": 3,
        "of copy bandwidth": 0.5,
        "times eager": 2,
        "MB": 1,
    }
    kernels = {"gpu": "a GPU", "torch": "2", "copy, GB/s": 100.0, "FLUX 1024, surrogate of a map": kernel}
    one, other = list(CASES)[:2]
    shown = gpu_hour.page({
        "kernels tested": {"found": "40 passed"}, "kernels": {"found": kernels},
        one: {"found": found}, other: {"found": found | planned},
    })  # fmt: skip
    for words in (
        "40 passed",
        "a GPU",
        "surrogate of a map",
        f"| {one} |",
        "| - | - |",
        "| 2.0 | 0.25 |",
        "RuntimeError",
    ):
        assert words in shown
    rows = [line.count("|") for line in shown.splitlines() if line.startswith("|")]
    assert sorted(set(rows)) == [4, 7, 9]  # as many columns in each row of a table


def test_parts_are_kept_as_they_end_and_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file, mark = tmp_path / "results.json", tmp_path / "mark"
    count = f"open({str(mark)!r}, 'a').write('x')"
    python = (sys.executable, "-c")
    parts = {
        "json": (*python, f"{count}; print('warm-up'); print('{{\"a\": 1}}')"),
        "words": (*python, "print('1 passed')"),
        "fails": (*python, "raise SystemExit(3)"),
        "hangs": (*python, "import time; time.sleep(900)"),
    }
    for _ in range(2):
        results = gpu_hour.measure_missing(parts, file, 2.0)
    assert {name: result["found"] for name, result in results.items()} == {"json": {"a": 1}, "words": "1 passed"}
    assert results == json.loads(file.read_text())
    assert mark.read_text() == "x"
    said = capfd.readouterr().err
    assert "fails: ended with code 3" in said
    assert "hangs: did not end in time" in said


def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_hour.py", "--folder", str(tmp_path / "bench")])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_hour.main() == 3
    assert "torch sees none here; nothing was measured" in capsys.readouterr().err
    assert not (tmp_path / "bench").exists()
