"""`visalign export`: what it writes, what it refuses; that the pictures are right is shown in test_artifacts.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel

from alignment.checkpoints.artifacts import CARD, CARD_DATA
from alignment.checkpoints.export import export, main
from alignment.errors import CheckpointError, ConfigError, EnvironmentProblem, PipelineError
from alignment.policy.networks.adapter_places import LORA_FILE
from tests.support.tiny import picture, tiny_flux
from tests.support.trained import SAME, Trained, quiet, trained


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("lora"), "flux", lora=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("full"), "flux", lora=False)


def test_lora_alone(adapters: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "deep" / "out"
    assert main(str(adapters.checkpoint), str(to), form="lora") == 0
    assert {path.name for path in to.iterdir()} == {LORA_FILE, CARD, CARD_DATA}
    assert (to / LORA_FILE).read_bytes() == (adapters.checkpoint / LORA_FILE).read_bytes()
    assert str(to / CARD) in capsys.readouterr().out


def test_merged_is_a_pipeline_without_adapters(
    adapters: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    to.mkdir()  # an empty folder may be there
    export(adapters.checkpoint, to, "merged")
    assert "shards" not in capfd.readouterr().err
    assert not list(to.rglob(LORA_FILE))
    pipe = quiet(DiffusionPipeline.from_pretrained(to))
    assert not any("lora" in name for name, _ in pipe.transformer.named_parameters())
    torch.testing.assert_close(picture(pipe), adapters.after, atol=SAME, rtol=0)
    assert 'FluxPipeline.from_pretrained("THIS_FOLDER", dtype=torch.float32)' in (to / CARD).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_full(whole: Trained, tmp_path: Path) -> None:
    export(whole.checkpoint, tmp_path / "out", "full")
    pipe = quiet(DiffusionPipeline.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(picture(pipe), whole.after, atol=SAME, rtol=0)


def test_the_base_may_have_moved(whole: Trained, adapters: Trained, tmp_path: Path) -> None:
    for run, form in ((whole, "full"), (adapters, "merged")):
        base, moved = run.base, tmp_path / f"moved for {form}"
        base.rename(moved)
        try:
            with pytest.raises(ConfigError, match="--pipeline PATH"):
                export(run.checkpoint, tmp_path / form, form)
            export(run.checkpoint, tmp_path / form, form, str(moved))
        finally:
            moved.rename(base)
        assert (tmp_path / form / "model_index.json").is_file()


@pytest.mark.parametrize("form", ["merged", "lora", "full"])
def test_a_damaged_checkpoint_is_refused(adapters: Trained, tmp_path: Path, form: str) -> None:
    copy = tmp_path / adapters.checkpoint.name
    shutil.copytree(adapters.checkpoint, copy)
    content = bytearray((copy / LORA_FILE).read_bytes())
    content[-1] ^= 1
    (copy / LORA_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{LORA_FILE} is damaged"):
        export(copy, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_forms_that_do_not_fit_are_refused(adapters: Trained, whole: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--as merged"):
        export(adapters.checkpoint, tmp_path / "out", "full")
    for form in ("lora", "merged"):
        with pytest.raises(ConfigError, match="--as full"):
            export(whole.checkpoint, tmp_path / "out", form)
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        export(whole.base, tmp_path / "out", "full")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_taken_is_refused(adapters: Trained, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    for name in ("full", "file"):
        with pytest.raises(ConfigError, match="not empty"):
            export(adapters.checkpoint, tmp_path / name, "lora")
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("form", ["merged", "full"])
def test_a_checkpoint_of_another_model_is_refused(
    adapters: Trained, whole: Trained, tmp_path: Path, form: str, sd15_folder: Path
) -> None:
    run = adapters if form == "merged" else whole
    with pytest.raises(CheckpointError, match="--pipeline PATH"):
        export(run.checkpoint, tmp_path / "out", form, str(sd15_folder))
    wider = tiny_flux()
    wider.transformer = FluxTransformer2DModel.from_config(wider.transformer.config, num_attention_heads=4)
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(CheckpointError, match="another network" if form == "merged" else "num_attention_heads"):
        export(run.checkpoint, tmp_path / "out", form, str(tmp_path / "wider"))
    assert not (tmp_path / "out").exists()


def test_a_broken_base_or_place_leaves_nothing(adapters: Trained, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match=r"model_index.json"):
        export(adapters.checkpoint, tmp_path / "out", "merged", str(tmp_path / "empty"))
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="could not be written"):
        export(adapters.checkpoint, tmp_path / "file" / "out", "lora")
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]
