"""Kernels compile for GPUs that are not here, and keep what they hold in registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_kernels_compile_and_spill_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 18
    assert {name.rpartition(" ")[2] for name in told} == {"sm_80", "sm_90"}
    for name, used in told.items():
        assert used["bytes spill stores"] == 0, name
        assert 0 < used["registers"] < 255, name
