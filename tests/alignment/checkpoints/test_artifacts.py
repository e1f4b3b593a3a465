"""What a checkpoint holds is what plain diffusers loads, and the card says where it comes from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from alignment.checkpoints.artifacts import CARD, Card, Classes, read_card, write_artifacts, write_card
from alignment.checkpoints.checkpoint import Checkpoints
from alignment.checkpoints.export import Order, export
from alignment.checkpoints.manifest import verify
from alignment.errors import CheckpointError
from alignment.policy.networks.adapter_places import CARD_DATA, LORA_FILE
from alignment.policy.networks.loading import experts
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.networks.weights import Weights
from tests.support.tiny import call_of, tiny_flux
from tests.support.trained import ALPHA, RANK, SAME, Trained, card_of, config_of, trained

CASES = {
    "flux lora": ("flux", True),
    "sd15 lora": ("sd15", True),
    "flux full": ("flux", False),
    "sd15 full": ("sd15", False),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Checkpoints of both families, by case."""
    return {case: trained(tmp_path_factory.mktemp("run"), family, lora=lora) for case, (family, lora) in CASES.items()}


def pictures(runs: dict[str, Trained], folder: Path) -> dict[tuple[str, str], Tensor]:
    """Return pictures by (case, way of loading), all made by one process that does not have this package."""
    jobs: dict[tuple[str, str], dict[str, Any]] = {}
    for case, run in runs.items():
        adapters = CASES[case][1]
        whole = folder / f"{case} exported"
        export(run.checkpoint, whole, Order("merged" if adapters else "full"))
        for how in ("lora", "adapter", "pipeline") if adapters else ("component", "pipeline"):
            jobs[case, how] = {
                "how": how,
                "base": str(run.base),
                "folder": str(whole if how == "pipeline" else run.checkpoint),
                "component": run.component,
                "call": call_of(run.pipe),
                "output": str(folder / f"{case} {how}.safetensors"),
            }
    (folder / "jobs.json").write_text(json.dumps(list(jobs.values())))
    process = subprocess.run(
        [sys.executable, "-I", Path(__file__).with_name("plain_diffusers.py"), folder / "jobs.json"],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return {key: load_file(job["output"])["picture"] for key, job in jobs.items()}


@pytest.mark.multi
@pytest.mark.slow
def test_plain_diffusers_makes_the_picture_of_the_training_pipeline(runs: dict[str, Trained], tmp_path: Path) -> None:
    made = pictures(runs, tmp_path)
    assert len(made) == 2 * 3 + 2 * 2
    for (case, how), picture in made.items():
        run = runs[case]
        torch.testing.assert_close(
            picture, run.after, atol=SAME, rtol=0, msg=lambda text, at=(case, how): f"{at}: {text}"
        )
        assert (run.after - run.before).abs().max() > 100 * SAME, f"the trained weights of {case} do not show"


@pytest.mark.parametrize("case", CASES)
def test_a_saved_checkpoint_is_whole(case: str, runs: dict[str, Trained]) -> None:
    verify(runs[case].checkpoint)


@pytest.mark.parametrize("case", ["flux lora", "sd15 lora"])
def test_rank_alpha_and_targets_travel_in_the_header(case: str, runs: dict[str, Trained]) -> None:
    run = runs[case]
    with safe_open(run.checkpoint / LORA_FILE, framework="pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        assert all(name.startswith(f"{run.component}.") for name in file.keys())  # noqa: SIM118
    settings = run.pipe.components[run.component].peft_config["default"]
    assert (header[f"{run.component}.r"], header[f"{run.component}.lora_alpha"]) == (RANK, ALPHA)
    assert set(header[f"{run.component}.target_modules"]) == set(settings.target_modules)
    loaded = DiffusionPipeline.from_pretrained(run.base)
    loaded.load_lora_weights(run.checkpoint)
    again = next(iter(loaded.components[run.component].peft_config.values()))
    assert (again.r, again.lora_alpha) == (RANK, ALPHA)


def test_equal_weights_are_recognised(tmp_path: Path) -> None:
    pipe, checkpoints = tiny_flux(), Checkpoints(tmp_path, keep=2)
    weights = Weights(experts(pipe), PolicySpec("some/base", lora=Lora(RANK)), seed=0)

    def write(folder: Path) -> None:
        write_artifacts(folder, pipe, weights, card_of(config_of("some/base", lora=True)))

    checkpoints.save(1, write)
    with pytest.warns(UserWarning, match="very weights of step 1"):
        checkpoints.save(2, write)
    with torch.no_grad():
        next(iter(weights.trainable.values()))[0, 0] += 1e-3
    verify(checkpoints.save(3, write), previous=tmp_path / "checkpoint-2")


def written(folder: Path, config: dict[str, Any], layout: Any = "lora") -> tuple[dict[str, Any], str]:
    """Write a card; return its header and its text."""
    write_card(folder, Classes.of(tiny_flux()), layout=layout, card=card_of(config))
    text = (folder / CARD).read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_has_what_the_hub_reads(tmp_path: Path) -> None:
    header, body = written(tmp_path, config_of("some/base", lora=True))
    assert header == {
        "base_model": "some/base",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "lora", "diffusers", "visalign"],
    }
    assert "| strict | 0.2500 [0.2000, 0.3000] | 0.5000 [0.4500, 0.5500] | 100 |" in body
    assert "type: clipped_surrogate" in body
    assert "weight: 0.5" in body
    config = body.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(config) == config_of("some/base", lora=True)
    assert read_card(tmp_path) == card_of(config_of("some/base", lora=True))


@pytest.mark.parametrize("layout", ["lora", "adapter", "component", "pipeline"])
def test_the_card_shows_code_that_fits(tmp_path: Path, layout: str) -> None:
    header, body = written(tmp_path, config_of("some/base", lora=layout != "component"), layout)
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert ("load_lora_weights" in code) == (layout == "lora")
    assert ("load_lora_adapter" in code) == (layout == "adapter")
    assert ("FluxTransformer2DModel" in code) == (layout == "component")
    assert ('from_pretrained("some/base"' in code) == (layout != "pipeline")
    assert ("lora" in header["tags"]) == (layout in ("lora", "adapter"))


@pytest.mark.parametrize(
    ("changed", "said"), [({"quantize": "8bit"}, "`8bit`"), ({"single_file": "/models/flux.gguf"}, "`flux.gguf`")]
)
def test_the_card_says_that_training_saw_rounded_weights(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    config = config_of("some/base", lora=True)
    assert "fewer bits" not in written(tmp_path, config)[1]
    rounded = {**config, "policy": {**config["policy"], **changed}}
    begins = f"Training and evaluation saw the base's weights in fewer bits ({said})"
    assert f"{begins}, on which" in written(tmp_path, rounded)[1]
    assert f"{begins}; here the adapters are folded into weights" in written(tmp_path, rounded, "pipeline")[1]


def test_a_local_base_is_named_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "tiny_base").mkdir()
    header, _ = written(tmp_path, config_of(tmp_path / "tiny_base", lora=True))
    assert header["base_model"] == "tiny_base"


def test_a_card_without_all_evaluations(tmp_path: Path) -> None:
    card = Card(config=config_of("some/base", lora=True), step=0, evaluation={})
    write_card(tmp_path, Classes.of(tiny_flux()), layout="lora", card=card)
    assert "None was made" in (tmp_path / CARD).read_text()
    base_only = replace(card, evaluation={"strict": {"base": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}}})
    write_card(tmp_path, Classes.of(tiny_flux()), layout="lora", card=base_only)
    assert "| strict | 0.5000 [0.4000, 0.6000] | not measured | 9 |" in (tmp_path / CARD).read_text()


NAMES = (
    "a|b",
    "<img src=x onerror=alert(1)>",
    "[here](http://elsewhere.example)",
    "`code` **bold** __x__",
    "two\nlines\n\n# heading",
    "\x1b[2Jgone",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_and_not_read_as_markup(tmp_path: Path, name: str) -> None:
    config = config_of("some/base", lora=True)
    config["source"]["reward"] = {"type": "weighted", "parts": {name: {"weight": 0.5}}}
    card = replace(card_of(config), evaluation={name: {"base": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}}})
    write_card(tmp_path, Classes.of(tiny_flux()), layout="lora", card=card)
    text = (tmp_path / CARD).read_text()
    table, config_text = text.split("## Config")
    rows = [line for line in table.split("## Evaluation")[1].splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert len(re.findall(r"(?<!\\)\|", rows[-1])) == 5
    for mark in "<`*[_":
        assert not re.search(rf"(?<!\\){re.escape(mark)}", rows[-1].split(" | 0.5")[0])
    (rewards,) = [line for line in table.splitlines() if line.startswith("| rewards |")]
    assert len(re.findall(r"(?<!\\)\|", rewards)) == 3
    assert "\x1b" not in text
    assert yaml.safe_load(config_text.split("```yaml\n")[1].split("\n```\n")[0]) == config


def test_a_fence_is_longer_than_what_is_in_it(tmp_path: Path) -> None:
    config = config_of("some/base", lora=True)
    config["name"] = "x\n```\n# mine"
    _, body = written(tmp_path, config)
    assert yaml.safe_load(body.split("````yaml\n")[1].split("\n````\n")[0]) == config


def test_no_secret_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "canary-in-environment")
    config = config_of("some/base", lora=True)
    config["source"]["reward"] = {
        "type": "remote",
        "api_key": "canary-key",
        "Token": "canary-token",
        "max_new_tokens": 5,
        "url": "https://me:canary-password@example.org:8000/score?sig=canary-query",
    }
    written(tmp_path, config)
    for path in (tmp_path / CARD, tmp_path / CARD_DATA):
        assert "canary" not in path.read_text()
        assert "example.org:8000/score" in path.read_text()
    assert read_card(tmp_path).config["source"]["reward"]["max_new_tokens"] == 5


def test_a_folder_without_a_card_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint-N folder"):
        read_card(tmp_path)


HALF_A_LEVEL = 0.5 / 255 + SAME  # pictures are rounded to 256 levels


@pytest.mark.parametrize("layout", ["lora", "adapter", "component", "merged", "full"])
def test_the_code_of_a_card_runs_and_makes_the_picture(layout: str, runs: dict[str, Trained], tmp_path: Path) -> None:
    run = runs["flux full" if layout in ("component", "full") else "flux lora"]
    folder = run.checkpoint
    if layout in ("merged", "full"):
        folder = tmp_path / layout
        export(run.checkpoint, folder, Order(layout))
    elif layout == "adapter":  # what pipelines without `load_lora_weights` get
        folder = shutil.copytree(run.checkpoint, tmp_path / layout)
        write_card(folder, Classes.of(run.pipe), layout="adapter", card=read_card(folder))
    code = (folder / CARD).read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("THIS_FOLDER", str(folder)).replace("a prompt", "a red circle"), names)
    made = torch.from_numpy(np.array(names["result"].images[0])) / 255
    torch.testing.assert_close(made, run.after.float(), atol=HALF_A_LEVEL, rtol=0)
