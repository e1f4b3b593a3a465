from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from alignment.errors import ConfigError, EnvironmentProblem
from alignment.reports.record import Recorder
from alignment.reports.trackers import Tracker, open_trackers
from reward_models.base import Media, Rewards
from tests.support.synthetic_run import evaluated

CANARY = "canary" + "7f3a" * 10
NAMES = ("wandb", "trackio", "tensorboard")


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """Nothing leaves this machine, and nothing is written elsewhere."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "wandb-home"))
    return tmp_path


def record(folder: Path, tracker: Tracker, *, first: int = 0) -> None:
    clips = Media(torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 8.0)
    with Recorder(folder, total_steps=4, trackers=[tracker], quiet=True) as recorder:
        for step in range(first, first + 2):
            recorder.step(step, {"reward/mean": 0.5 + step, "loss": float("nan")})
        recorder.samples("train", first + 2, clips, ("a <b>", "c"), Rewards(torch.tensor([0.5, float("nan")])))
        recorder.evaluation("base", first + 2, evaluated(0.5))


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_takes_a_run_and_a_resumed_one(name, offline):
    folder = offline / "run"
    for first in (0, 2):
        [tracker] = open_trackers([name], folder, {"seed": 0, "policy": {"pipeline": "tiny"}})
        record(folder, tracker, first=first)
    written = [path for path in offline.rglob("*") if path.is_file()]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    kept = {"wandb": folder / "wandb", "trackio": offline / "trackio", "tensorboard": folder / "tensorboard"}[name]
    assert any(path.is_relative_to(kept) for path in written)


def test_wandb_keeps_pictures_and_films_as_such(offline):
    [tracker] = open_trackers(["wandb"], offline / "run", {})
    record(offline / "run", tracker)
    [kept] = (offline / "run" / "wandb").glob("offline-run-*")
    kinds = [path.suffix for path in (kept / "files" / "media").rglob("*") if path.is_file()]
    assert kinds.count(".mp4") == 2
    assert 1 < kinds.count(".png") <= 16  # equal pictures are kept once
    assert not [path for path in kept.rglob("*") if path.name in {"requirements.txt", "diff.patch", "output.log"}]


def test_wandb_files_a_run_where_its_variables_say(offline, monkeypatch):
    said = {"WANDB_PROJECT": "project-of-ours", "WANDB_ENTITY": "people-of-ours", "WANDB_RUN_GROUP": "three-seeds"}
    for variable, value in said.items():
        monkeypatch.setenv(variable, value)
    [tracker] = open_trackers(["wandb"], offline / "run", {})
    run = importlib.import_module("wandb").run
    assert [run.project, run.entity, run.group] == list(said.values())
    tracker.close()


def test_tensorboard_keeps_numbers_and_pictures(offline):
    [tracker] = open_trackers(["tensorboard"], offline / "run", {})
    record(offline / "run", tracker)
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(offline / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert [event.value for event in events.Scalars("reward/mean")] == [0.5, 1.5]
    assert "loss" not in tags["scalars"]
    assert {"evaluation/strict", "evaluation/graded"} <= set(tags["scalars"])
    assert events.Images("samples/train/00")[0].encoded_image_string.startswith(b"GIF8")
    assert events.Images("evaluation/base/00")[0].encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_with_its_cure(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentProblem, match=f"pip install {name}"):
        open_trackers([name], tmp_path, {})


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no tracker 'mlflow'"):
        open_trackers(["mlflow"], tmp_path, {})


def test_no_tracker_is_the_default(tmp_path):
    assert open_trackers([], tmp_path / "run", {}) == []
    assert not (tmp_path / "run").exists()
