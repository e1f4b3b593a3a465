"""Every recipe for a real model loads, dry-runs, and takes one real step on a tiny pipeline of the model's class."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from alignment.cli import main as cli
from alignment.config.load import load
from alignment.config.run import Run
from alignment.policy import latents
from alignment.policy.networks.spec import PolicySpec
from alignment.preflight.plan.blueprint import ARCHITECTURES, describe
from alignment.training import setup
from alignment.training.runtime.runtime import Runtime
from reward_models.base import RewardModel
from reward_models.combinators.weighted import Weighted
from tests.pipelines.zoo import edits, images, videos, worlds
from tests.pipelines.zoo.member import Member, builders
from tests.support.tiny_rewards import Shelf

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs" / "models").glob("*.yaml"))
TWINS = {
    "FluxPipeline": "flux",
    "StableDiffusionPipeline": "stable_diffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl",
    "StableDiffusion3Pipeline": "stable_diffusion_3",
    "HunyuanVideoPipeline": "hunyuan_video",
    "HunyuanSkyreelsImageToVideoPipeline": "skyreels_v1",
    "WanPipeline": "wan",
    "QwenImagePipeline": "qwen_image",
    "QwenImageEditPipeline": "qwen_image_edit",
    "ZImagePipeline": "z_image",
}
"""A tiny pipeline of each class; Wan 2.2 has a second expert."""

SMALL = (
    "steps=1",
    "device=cpu",
    "source.prompts=2",
    "policy.embedding_cache=null",
    "policy.call.num_inference_steps=6",
)
SMALLER = {"prompts_per_call": "1", "group_size": "3", "rows_per_group": "2"}
"""Of a source, where it has such a field."""


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder with two prompts that bring a picture each, two with samples, and two that bring none."""
    lines, samples = [], []
    for text, colour in {"a red circle": "red", "two blue squares": "blue"}.items():
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{colour}.png")
        lines.append(json.dumps({"prompt": text, "image": f"{colour}.png"}))
        for name, other in (("chosen", colour), ("rejected", "green")):
            Image.new("RGB", (16, 16), other).save(tmp_path / f"{colour}-{name}.png")
        sides = {name: f"{colour}-{name}.png" for name in ("chosen", "rejected")}
        samples.append(json.dumps({"prompt": text, "media": sides["chosen"], "label": not samples, **sides}))
    (tmp_path / "pictures.jsonl").write_text("\n".join(lines))
    (tmp_path / "samples.jsonl").write_text("\n".join(samples))
    (tmp_path / "texts.txt").write_text("a red circle\ntwo blue squares\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latents, "RETURNS", (1.0, 1.0))  # VAEs of random weights give nothing back


def prompts_for(path: Path) -> str:
    run = load(path)
    if run.source.media:
        return "samples.jsonl"
    return "pictures.jsonl" if run.data.prompts.endswith(".jsonl") else "texts.txt"


def small(path: Path) -> list[str]:
    """Return what makes a step of this recipe small."""
    known = {field.name for field in fields(load(path).source)}  # type: ignore[arg-type]  # a dataclass
    return [*SMALL, *(f"source.{name}={value}" for name, value in SMALLER.items() if name in known)]


def twin(path: Path) -> Member:
    """Return the tiny pipeline that stands for a recipe's."""
    told = describe(PolicySpec(load(path).policy.pipeline))
    name = TWINS[told.cls.__name__] + ("_2_2" if "transformer_2" in told.parts else "")
    return builders(images, videos, edits, worlds)[name]()


def with_tiny_weights(reward: RewardModel, shelf: Shelf) -> RewardModel:
    """Return a recipe's own reward on the weights of the shelf; what the recipe says of it stays."""
    if isinstance(reward, Weighted):
        terms = reward.parts.items()
        return replace(reward, parts={n: replace(t, reward=with_tiny_weights(t.reward, shelf)) for n, t in terms})
    said = {f.name: vars(reward)[f.name] for f in fields(reward) if vars(reward)[f.name] != f.default}  # type: ignore[arg-type]
    return replace(shelf(type(reward).__module__.split(".")[-1]), **said)  # type: ignore[type-var]  # a dataclass


def scored(run: Run, shelf: Shelf) -> Run:
    """Return the run with tiny weights in its reward, where it has one."""
    reward = run.source.reward
    return run if reward is None else replace(run, source=replace(run.source, reward=with_tiny_weights(reward, shelf)))  # type: ignore[type-var]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_dry_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", str(path), f"data.prompts={prompts_for(path)}", *small(path), "--dry-run"]) == 0
    assert "This run, " in capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_missing_prompt_file_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", str(path), "--dry-run"]) == 2
    assert f"data.prompts: there is no file {load(path).data.prompts}" in capsys.readouterr().err


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_sizes_of_a_recipe_ship(path: Path) -> None:
    assert (ARCHITECTURES / f"{load(path).policy.pipeline}.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_a_step_on_its_twin(path: Path, tmp_path: Path, tiny_rewards: Shelf) -> None:
    member = twin(path)
    member.pipe.save_pretrained(tmp_path / "pipeline")
    recipes_own = ("num_inference_steps", "guidance", "cfg")  # all else is the twin's size
    sizes = {name: value for name, value in member.call.items() if not any(part in name for part in recipes_own)}
    changes = [f"policy.call.{name}={json.dumps(value)}" for name, value in sizes.items()]
    here = [f"policy.pipeline={tmp_path / 'pipeline'}", f"data.prompts={prompts_for(path)}"]
    if load(path).source.structure is not None:
        here.append("source.structure.backbone={type: saliency}")
    run = scored(load(path, [*small(path), *here, *changes]), tiny_rewards)
    runtime = Runtime(run)
    trainer = setup.load(run, runtime)
    before = {name: p.detach().clone() for name, p in trainer.policy.trainable.items()}
    ctx = trainer.context(0)
    trainer.learn(ctx, trainer.experience(ctx).batch)
    moved = sum(not torch.equal(p, before[name]) for name, p in trainer.policy.trainable.items())
    assert moved
    assert all(p.isfinite().all() for p in trainer.policy.trainable.values())
    assert runtime.metrics()["grad/norm"] > 0
