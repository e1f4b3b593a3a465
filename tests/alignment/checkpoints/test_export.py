"""`visalign export`: what it writes, what it refuses; that the pictures are right is shown in test_artifacts.py."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignment.checkpoints import formats
from alignment.checkpoints.artifacts import CARD, read_card
from alignment.checkpoints.contents import pipeline_digest
from alignment.checkpoints.export import Order, export, main
from alignment.checkpoints.manifest import STATE
from alignment.checkpoints.whole import declared, trained_pipeline
from alignment.cli import main as cli
from alignment.errors import CheckpointError, ConfigError, EnvironmentProblem, PipelineError
from alignment.policy.networks.adapter_kinds import Adapter
from alignment.policy.networks.adapter_places import CARD_DATA, LORA_FILE, PEFT_FILE
from alignment.policy.networks.module_names import to_original
from tests.pipelines.zoo import built
from tests.support.tiny import picture, tiny_flux
from tests.support.trained import SAME, Trained, quiet, saved, trained


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("lora"), "flux", lora=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("full"), "flux", lora=False)


def test_lora_alone(adapters: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "deep" / "out"
    assert main(str(adapters.checkpoint), str(to), Order("diffusers")) == 0
    assert {path.name for path in to.iterdir()} == {LORA_FILE, CARD, CARD_DATA}
    mine, theirs = (load_file(folder / LORA_FILE) for folder in (to, adapters.checkpoint))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert str(to / CARD) in capsys.readouterr().out


def test_merged_is_a_pipeline_without_adapters(
    adapters: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    to.mkdir()  # an empty folder may be there
    export(adapters.checkpoint, to, Order("merged"))
    assert "shards" not in capfd.readouterr().err
    assert not list(to.rglob(LORA_FILE))
    pipe = quiet(DiffusionPipeline.from_pretrained(to))
    assert not any("lora" in name for name, _ in pipe.transformer.named_parameters())
    torch.testing.assert_close(picture(pipe), adapters.after, atol=SAME, rtol=0)
    assert 'FluxPipeline.from_pretrained("THIS_FOLDER", dtype=torch.float32)' in (to / CARD).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_full(whole: Trained, tmp_path: Path) -> None:
    export(whole.checkpoint, tmp_path / "out", Order("full"))
    pipe = quiet(DiffusionPipeline.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(picture(pipe), whole.after, atol=SAME, rtol=0)


def test_the_base_may_have_moved(whole: Trained, adapters: Trained, tmp_path: Path) -> None:
    for run, form in ((whole, "full"), (adapters, "merged")):
        base, moved = run.base, tmp_path / f"moved for {form}"
        base.rename(moved)
        try:
            with pytest.raises(ConfigError, match="--pipeline PATH"):
                export(run.checkpoint, tmp_path / form, Order(form))
            export(run.checkpoint, tmp_path / form, Order(form, str(moved)))
        finally:
            moved.rename(base)
        assert (tmp_path / form / "model_index.json").is_file()


@pytest.mark.parametrize("form", ["merged", "diffusers", "kohya", "full"])
def test_a_damaged_checkpoint_is_refused(adapters: Trained, tmp_path: Path, form: str) -> None:
    copy = tmp_path / adapters.checkpoint.name
    shutil.copytree(adapters.checkpoint, copy)
    content = bytearray((copy / LORA_FILE).read_bytes())
    content[-1] ^= 1
    (copy / LORA_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{LORA_FILE} is damaged"):
        export(copy, tmp_path / "out", Order(form))
    assert not (tmp_path / "out").exists()


def test_forms_that_do_not_fit_are_refused(adapters: Trained, whole: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--as merged"):
        export(adapters.checkpoint, tmp_path / "out", Order("full"))
    for form in ("diffusers", "merged"):
        with pytest.raises(ConfigError, match="--as full"):
            export(whole.checkpoint, tmp_path / "out", Order(form))
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        export(whole.base, tmp_path / "out", Order("full"))
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_taken_is_refused(adapters: Trained, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep me")
    (tmp_path / "file").write_text("keep me")
    for name in ("full", "file"):
        with pytest.raises(ConfigError, match="not empty"):
            export(adapters.checkpoint, tmp_path / name, Order("diffusers"))
    with pytest.raises(ConfigError, match="in lies in the checkpoint; choose another"):
        export(adapters.checkpoint, adapters.checkpoint / "in", Order("diffusers"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(EnvironmentProblem, match="loop could not be written"):
        export(adapters.checkpoint, tmp_path / "loop", Order("diffusers"))
    with pytest.raises(CheckpointError, match="file is not a finished checkpoint"):
        export(tmp_path / "file", tmp_path / "out", Order("diffusers"))
    with pytest.raises(ConfigError, match="--pipeline: there is no folder /nope"):
        export(adapters.checkpoint, tmp_path / "out", Order("merged", "/nope"))
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("form", ["merged", "full", "diffusers", "peft"])
def test_a_checkpoint_of_another_model_is_refused(
    adapters: Trained, whole: Trained, tmp_path: Path, form: str, sd15_folder: Path
) -> None:
    run = whole if form == "full" else adapters
    with pytest.raises(CheckpointError, match="--pipeline PATH"):
        export(run.checkpoint, tmp_path / "out", Order(form, str(sd15_folder)))
    wider = tiny_flux()
    wider.transformer = FluxTransformer2DModel.from_config(wider.transformer.config, num_attention_heads=4)
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(CheckpointError, match="num_attention_heads" if form == "full" else "another network"):
        export(run.checkpoint, tmp_path / "out", Order(form, str(tmp_path / "wider")))
    assert not (tmp_path / "out").exists()


def test_a_base_of_other_content_is_told(
    adapters: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    checkpoint = shutil.copytree(adapters.checkpoint, tmp_path / "checkpoint-7")
    digest = pipeline_digest(DiffusionPipeline.from_pretrained(adapters.base))
    (checkpoint / STATE).mkdir(exist_ok=True)
    progress = {"step": 7, "wall_seconds": 1.0, "contents": {"policy.pipeline": digest}}
    (checkpoint / STATE / "progress.json").write_text(json.dumps(progress))
    card = read_card(checkpoint)
    trained_pipeline(checkpoint, card)
    assert not [one for one in recwarn if "by content" in str(one.message)]
    other = DiffusionPipeline.from_pretrained(adapters.base)
    for weight in other.transformer.parameters():
        weight.data.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    with pytest.warns(match=r"other is not the pipeline that .*checkpoint-7 was trained on, by content"):
        trained_pipeline(checkpoint, card, str(tmp_path / "other"))


def test_a_link_or_the_longest_name_may_be_the_target(adapters: Trained, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, target in (("to_nothing", "there"), ("to_empty", "empty")):
        (tmp_path / name).symlink_to(tmp_path / target)
    for name in ("to_nothing", "to_empty", "x" * 255):
        export(adapters.checkpoint, tmp_path / name, Order("diffusers"))
        assert (tmp_path / name / CARD).is_file()
    assert {path.name for path in tmp_path.iterdir() if path.is_symlink()} == {"to_nothing", "to_empty"}
    assert len(list(tmp_path.iterdir())) == 5  # nothing else is left


def test_a_relative_place_is_explained(adapters: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = read_card(adapters.checkpoint)
    policy = {**card.config["policy"], "pipeline": "assets/nowhere"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"named from the one that training was started in: say where .*--pipeline"):
        trained_pipeline(adapters.checkpoint, replace(card, config={**card.config, "policy": policy}))


def test_adapters_alone_need_no_weights_of_the_base(adapters: Trained, tmp_path: Path) -> None:
    card = read_card(adapters.checkpoint)
    rounded = {**card.config, "policy": {**card.config["policy"], "single_file": "flux.gguf"}}
    assert declared(replace(card, config=rounded), None, "transformer").pipeline is FluxPipeline
    with pytest.raises(ConfigError, match=r"trained on flux.gguf, whose weights are rounded"):
        trained_pipeline(adapters.checkpoint, replace(card, config=rounded))


def test_a_broken_base_or_place_leaves_nothing(adapters: Trained, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PipelineError, match=r"model_index.json"):
        export(adapters.checkpoint, tmp_path / "out", Order("merged", str(tmp_path / "empty")))
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="could not be written"):
        export(adapters.checkpoint, tmp_path / "file" / "out", Order("diffusers"))
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]


# ---- trained networks in the names of their authors ------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False])
def test_networks_in_the_names_of_their_authors_are_read_by_diffusers(tmp_path: Path, lora: bool) -> None:
    """Wan 2.2 has two of them."""
    pipe = built("wan_2_2").pipe
    pipe.save_pretrained(tmp_path / "base")
    checkpoint = saved(tmp_path, tmp_path / "base", pipe, lora=lora)
    export(checkpoint, tmp_path / "out", Order("gguf-ready", licence="mit"))
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {
        "transformer.safetensors",
        "transformer_2.safetensors",
    }
    export(checkpoint, tmp_path / "whole", Order("merged" if lora else "full"))
    wanted = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    code = re.findall(r"```python\n(.*?)\nresult", (tmp_path / "out" / CARD).read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(code.replace("THIS_FOLDER", str(tmp_path / "out")), names)
    for name in ("transformer", "transformer_2"):
        with safe_open(tmp_path / "out" / f"{name}.safetensors", framework="pt") as file:
            assert {"blocks.0.self_attn.q.weight", "head.modulation"} <= set(file.keys())
            assert file.metadata()["modelspec.license"] == "mit"
        mine, theirs = (p.components[name].state_dict() for p in (names["pipe"], wanted))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


def test_networks_that_diffusers_does_not_read_back_so_are_refused(adapters: Trained, tmp_path: Path) -> None:
    """Its reader of FLUX takes the published width alone; PixArt has none."""
    with pytest.raises(ConfigError, match=r"--as gguf-ready: .* FluxTransformer2DModel: .*perhaps for its size"):
        export(adapters.checkpoint, tmp_path / "out", Order("gguf-ready"))
    assert list(tmp_path.iterdir()) == []
    for kind, config, says in (
        ("PixArtTransformer2DModel", {}, "none are known that diffusers reads back"),
        ("WanTransformer3DModel", {}, "fps_embedding.weight has none"),
    ):
        with pytest.raises(ConfigError, match=says):
            to_original(kind, config, {"fps_embedding.weight": torch.ones(1)})


# ---- adapters in other formats ---------------------------------------------------------------------------------------


def test_every_format_is_whole_and_says_where_it_comes_from(adapters: Trained, tmp_path: Path) -> None:
    for form, file in (("diffusers", LORA_FILE), ("peft", PEFT_FILE), ("comfyui", LORA_FILE)):
        export(adapters.checkpoint, tmp_path / form, Order(form, trigger="in shapes", licence="mit"))
        with safe_open(tmp_path / form / file, framework="pt") as read:
            header = read.metadata()
        assert (header["run"], header["step"], header["base_model"]) == ("tiny-run", "7", "base")
        assert json.loads(header["recipe"]) == {"objective": "clipped_surrogate", "source": "on_policy_steps"}
        assert (header["modelspec.trigger_phrase"], header["modelspec.license"]) == ("in shapes", "mit")
        card = (tmp_path / form / CARD).read_text()
        front = yaml.safe_load(card.split("---\n")[1])
        assert (front["license"], front["instance_prompt"], "lora" in front["tags"]) == ("mit", "in shapes", True)


def test_a_class_without_names_in_a_format_says_so(tmp_path: Path) -> None:
    adapter = Adapter("transformer", {"to_q.lora_A.weight": torch.ones(1, 1)}, LoraConfig())
    for form, kind in (("kohya", "AuraFlowTransformer2DModel"), ("comfyui", "SanaTransformer2DModel")):
        with pytest.raises(ConfigError, match=rf"--as {form}: there are no names for the modules of {kind}"):
            formats.write_form(adapter, tmp_path / "a.safetensors", form, kind, {})
    assert list(tmp_path.iterdir()) == []


def test_modules_that_a_program_would_read_past_are_refused(tmp_path: Path) -> None:
    name = "context_embedder.token_refiner.refiner_blocks.0.attn.to_q"
    adapter = Adapter("transformer", {f"{name}.lora_A.weight": torch.ones(1, 1)}, LoraConfig())
    with pytest.raises(ConfigError, match=rf"kohya's tools adapt nothing of {name} of HunyuanVideoTransformer3DModel"):
        formats.write_form(adapter, tmp_path / "a.safetensors", "kohya", "HunyuanVideoTransformer3DModel", {})


def test_the_dtype_is_that_of_the_trained_numbers_alone(adapters: Trained, whole: Trained, tmp_path: Path) -> None:
    for run, form in ((adapters, "merged"), (whole, "full")):
        export(run.checkpoint, tmp_path / form, Order(form, dtype="bfloat16"))
        trained, other = (next((tmp_path / form / part).glob("*.safetensors")) for part in ("transformer", "vae"))
        assert {tensor.dtype for tensor in load_file(trained).values()} == {torch.bfloat16}
        assert {tensor.dtype for tensor in load_file(other).values()} == {torch.float32}
    export(adapters.checkpoint, tmp_path / "half", Order("diffusers", dtype="float16"))
    mine, theirs = (load_file(folder / LORA_FILE) for folder in (tmp_path / "half", adapters.checkpoint))
    assert all(torch.equal(tensor, theirs[name].half()) for name, tensor in mine.items())


def test_numbers_that_a_dtype_cannot_hold_are_refused() -> None:
    adapter = Adapter("transformer", {"to_q.lora_A.weight": torch.full((1, 1), 1e5)}, LoraConfig())
    with pytest.raises(ConfigError, match=r"--dtype: to_q.lora_A.weight has numbers that are too large for float16"):
        formats.in_dtype(adapter, torch.float16)


def test_a_file_that_is_not_what_was_written_is_found(tmp_path: Path) -> None:
    path, wanted = tmp_path / "a.safetensors", {"one": torch.ones(2), "two": torch.zeros(2)}
    save_file(wanted, path)
    formats.check_written(path, wanted)
    for changed in ({**wanted, "two": torch.ones(2)}, {"one": wanted["one"]}, {**wanted, "three": torch.ones(2)}):
        with pytest.raises(CheckpointError, match="was not written as it should be"):
            formats.check_written(path, changed)
    with pytest.raises(CheckpointError, match="two came back otherwise"):
        formats.check_written(path, {**wanted, "two": wanted["two"].half()})


def test_nothing_is_exported_where_it_could_not_be_pushed(
    adapters: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    to = tmp_path / "out"
    words = ["export", str(adapters.checkpoint), "--to", str(to), "--as", "diffusers"]
    assert cli.run([*words, "--push", "not a name"]) == 2
    assert "--push: " in (told := capsys.readouterr().err)
    assert "expected OWNER/NAME" in told
    assert cli.run([*words, "--push", "somebody/style"]) == 3
    assert "--push: there is no token for the hub; run `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    assert not to.exists()
    monkeypatch.setenv("HF_TOKEN", "hf_none")  # the hub cannot be reached from a test
    assert cli.run([*words, "--push", "somebody/style"]) == 3
    assert f"--push: somebody/style did not take {to}, which is whole: " in capsys.readouterr().err
    assert (to / LORA_FILE).is_file()
