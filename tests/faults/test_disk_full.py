"""A disk that fills up during a save costs that save and nothing else.

A limit on the size of a file stands in for the full disk: both break a write in the middle, with an OSError from Python
and a SafetensorError from safetensors.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignment.checkpoints.checkpoint import Checkpoints
from alignment.errors import EnvironmentProblem

LIMIT = 4096  # bytes; a small checkpoint fits in, manifest included


@contextmanager
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def small(folder: Path, value: float = 1.0) -> None:
    save_file({"w": np.full(4, value, dtype=np.float32)}, folder / "weights.safetensors")


def large_weights(folder: Path) -> None:
    save_file({"w": np.ones(LIMIT, dtype=np.float32)}, folder / "weights.safetensors")


def large_text(folder: Path) -> None:
    small(folder, value=2.0)
    (folder / "README.md").write_text("x" * 2 * LIMIT)


def many_files(folder: Path) -> None:
    """Small files whose manifest is large: the write of the manifest itself fails."""
    small(folder, value=2.0)
    for index in range(LIMIT // 32):
        (folder / f"{index}.txt").write_text("")


@pytest.mark.parametrize("write", [large_weights, large_text, many_files])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, write: Callable[[Path], None]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, small)
    with full_disk(), pytest.raises(EnvironmentProblem, match="step 2 could not be saved") as raised:
        checkpoints.save(2, write)
    assert "checkpoint-1 is intact" in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "latest"}
    assert (tmp_path / "latest").read_text() == "checkpoint-1\n"
    assert checkpoints.find() == tmp_path / "checkpoint-1"
    checkpoints.save(3, write)  # there is room again
    assert checkpoints.find() == tmp_path / "checkpoint-3"


def test_the_first_save_may_fail_too(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    with full_disk(), pytest.raises(EnvironmentProblem, match="there is none before it"):
        checkpoints.save(1, large_weights)
    assert list(tmp_path.iterdir()) == []
