"""Recipes for real models on tiny pipelines of the models' classes, with their own rewards on tiny weights."""

from __future__ import annotations

import functools
import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from alignment.checkpoints.parts import whole
from alignment.config.load import load
from alignment.config.run import Run
from alignment.policy import latents
from alignment.policy.networks.spec import PolicySpec
from alignment.preflight.plan.blueprint import describe
from reward_models.base import RewardModel
from reward_models.combinators.weighted import Weighted
from tests.pipelines.zoo import edits, images, videos, worlds
from tests.pipelines.zoo.member import builders
from tests.support.tiny_rewards import Shelf
from tests.support.toy import trainer_of

RECIPES = {path.stem: path for path in sorted((Path(__file__).parents[2] / "configs" / "models").glob("*.yaml"))}
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
    "policy.call.num_inference_steps=5",
)
SMALLER = {"prompts_per_call": "1", "group_size": "3", "rows_per_group": "2"}
"""Of a source, where it has such a field."""


def write_data(folder: Path) -> None:
    """Write two prompts that bring a picture each, two with samples, and two that bring none."""
    lines, samples = [], []
    for text, colour in {"a red circle": "red", "two blue squares": "blue"}.items():
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
        lines.append(json.dumps({"prompt": text, "image": f"{colour}.png"}))
        for name, other in (("chosen", colour), ("rejected", "green")):
            Image.new("RGB", (16, 16), other).save(folder / f"{colour}-{name}.png")
        sides = {name: f"{colour}-{name}.png" for name in ("chosen", "rejected")}
        samples.append(json.dumps({"prompt": text, "media": sides["chosen"], "label": not samples, **sides}))
    (folder / "pictures.jsonl").write_text("\n".join(lines))
    (folder / "samples.jsonl").write_text("\n".join(samples))
    (folder / "texts.txt").write_text("a red circle\ntwo blue squares\n")


def prompts_for(path: Path) -> str:
    run = load(path)
    if run.source.media:
        return "samples.jsonl"
    return "pictures.jsonl" if run.data.prompts.endswith(".jsonl") else "texts.txt"


def small(path: Path) -> list[str]:
    """Return what makes a step of this recipe small."""
    known = {field.name for field in fields(load(path).source)}  # type: ignore[arg-type]  # a dataclass
    return [*SMALL, *(f"source.{name}={value}" for name, value in SMALLER.items() if name in known)]


@functools.cache
def name_of(pipeline: str) -> str:
    """Return the name of the tiny pipeline that stands for a recipe's."""
    told = describe(PolicySpec(pipeline))
    return TWINS[told.cls.__name__] + ("_2_2" if "transformer_2" in told.parts else "")


@functools.cache
def sizes_of(name: str, folder: Path) -> dict[str, object]:
    """Save a tiny pipeline as `folder / name`, and return the arguments of a small call."""
    member = builders(images, videos, edits, worlds)[name]()
    member.pipe.save_pretrained(folder / name)
    return dict(member.call)


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


def tiny_run(path: Path, folder: Path, shelf: Shelf, *more: str) -> Run:
    """Return a recipe's run on its twin, which is saved in `folder` if it is not there; the folder has `write_data`."""
    name = name_of(load(path).policy.pipeline)
    recipes_own = ("num_inference_steps", "guidance", "cfg")  # all else is the twin's size
    sizes = {key: value for key, value in sizes_of(name, folder).items() if not any(own in key for own in recipes_own)}
    changes = [f"policy.call.{key}={json.dumps(value)}" for key, value in sizes.items()]
    here = [f"policy.pipeline={folder / name}", f"data.prompts={folder / prompts_for(path)}"]
    if load(path).source.structure is not None:
        here.append("source.structure.backbone={type: saliency}")
    return scored(load(path, [*small(path), *here, *changes, *more]), shelf)


def in_float32(run: Run) -> Run:
    """Return the run with float32 weights and no autocast: rounding, and Adam's first update, hide what differs."""
    return replace(run, policy=replace(run.policy, autocast=None, dtype="float32"))


def take_step(run: Run) -> tuple[dict[str, Tensor], float]:
    """Take the first step of a run; return its trained weights, all finite, and how far they have moved together."""
    latents.RETURNS = (1.0, 1.0)  # VAEs of random weights give nothing back
    trainer = trainer_of(run)
    before = {name: whole(p.detach()).clone() for name, p in trainer.policy.trainable.items()}
    ctx = trainer.context(0)
    trainer.learn(ctx, trainer.experience(ctx).batch)
    after = {name: whole(p.detach()).clone() for name, p in trainer.policy.trainable.items()}
    moved = torch.cat([(after[name] - before[name]).flatten() for name in after]).norm().item()
    assert moved > 0
    assert all(p.isfinite().all() for p in after.values())
    assert trainer.runtime.metrics()["grad/norm"] > 0
    return after, moved
