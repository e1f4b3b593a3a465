"""The benchmarks of the kernels compute what they say, at sizes that take no time, and nothing without a GPU."""

from __future__ import annotations

import pytest
import torch

from examples.benchmarks import kernels_gpu, surrogate_cpu
from samplers.kernels.dispatch import choosing

SAME = 1e-5  # relative: float32 sums in another order


def test_every_job_runs_and_can_be_traced() -> None:
    for name, job in kernels_gpu.jobs(2, (6, 4), (6, 1), "cpu").items():
        with choosing("torch"):
            found = job.run(job.forward)
            assert torch.equal(job.run(torch.compile(job.forward, backend="eager")), found), name
        assert found.isfinite().all()
        assert job.bytes > 0


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["kernels_gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels_gpu.main() == 3
    assert "torch sees none here; nothing was measured" in capsys.readouterr().err


def test_what_is_compared_on_a_cpu_is_the_same_loss() -> None:
    compared = surrogate_cpu.jobs(2, (6, 4), (6, 1))
    plain, scalar, mapped = (compared[name]() for name in ("plain scalar", "ours, scalar", "ours, map"))
    torch.testing.assert_close(scalar, plain, rtol=SAME, atol=SAME * plain.abs().max().item())
    assert mapped.isfinite().all()
