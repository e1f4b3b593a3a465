"""Every text file of a user is read whole by one reader, which refuses what has no end, and keys that stand twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from alignment.data.prompts import read_prompts
from alignment.errors import DataError
from alignment.training.judges.pairs import read_pairs
from evals.benchmarks.base import json_records
from reward_models.base import RewardError
from reward_models.loading.whole_files import read_whole
from reward_models.vlm_rewards.references import read_references
from reward_models.vlm_rewards.wording import read_wording

READERS: dict[str, Callable[[Path], object]] = {
    "prompts": lambda file: read_prompts(str(file)),
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


@pytest.mark.parametrize("reader", [name for name in READERS if name != "wording"])
def test_a_key_that_stands_twice_is_named(tmp_path: Path, reader: str) -> None:
    file = tmp_path / "slip.jsonl"
    file.write_text('{"prompt": "a cat", "media": "a.png", "prompt": "a dog"}\n', encoding="utf-8")
    with pytest.raises((DataError, RewardError), match=r"slip\.jsonl.*1: .*the key 'prompt' is given twice"):
        READERS[reader](file)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "wording"])
def test_only_the_end_of_a_line_ends_it(tmp_path: Path, reader: str) -> None:
    """What Unicode calls the end of a line stands within texts, where JSON leaves it as it is."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    one = {"prompt": "a cat\u2028and\x85a dog", "media": "a.png", "chosen": "a.png", "rejected": "b.png"}
    file = tmp_path / "pictures.jsonl"
    file.write_text(json.dumps(one, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    READERS[reader](file)
