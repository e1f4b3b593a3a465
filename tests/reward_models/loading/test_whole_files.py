"""Every text file of a user is read whole by one reader, which refuses what has no end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.data.records import read_records
from alignment.errors import DataError
from alignment.training.judges.pairs import read_pairs
from evals.benchmarks.base import json_records
from reward_models.base import RewardError
from reward_models.loading.whole_files import read_whole
from reward_models.vlm_rewards.references import read_references
from reward_models.vlm_rewards.wording import read_wording

READERS: dict[str, Callable[[Path], object]] = {
    "prompts": lambda file: list(read_records(file, ("prompt",))),
    "pairs": lambda file: read_pairs(str(file)),
    "benchmark": json_records,
    "references": lambda file: read_references(str(file)),
    "wording": lambda file: read_wording(str(file), ""),
}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file that has no end")
@pytest.mark.parametrize("reader", READERS)
def test_what_has_no_end_is_not_read(tmp_path: Path, reader: str) -> None:
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    with pytest.raises((DataError, RewardError), match=r"endless\.jsonl cannot be read: .*it is a device or a pipe"):
        READERS[reader](tmp_path / "endless.jsonl")


@pytest.mark.parametrize("reader", READERS)
def test_so_much_is_read_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    file = tmp_path / "large.jsonl"
    file.write_text(json.dumps({"prompt": "a cat"}) + "\n")
    monkeypatch.setattr("reward_models.loading.whole_files.BYTES_AT_MOST", file.stat().st_size - 1)
    with pytest.raises((DataError, RewardError), match=r"large\.jsonl cannot be read: .*it has more than \d+ bytes"):
        READERS[reader](file)
    monkeypatch.undo()
    assert read_whole(file) == file.read_bytes()
