"""Checkpoints of tiny pipelines, as a run would leave them, for the tests of what users load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from alignment.checkpoints.artifacts import Card, write_artifacts
from alignment.checkpoints.checkpoint import Checkpoints
from alignment.policy.networks.loading import experts
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.networks.weights import Weights
from tests.support.tiny import FLUX_CALL, picture, tiny_flux, tiny_sd15

RANK, ALPHA = 4, 6  # unequal, so that a lost alpha shows
# The same weights in memory of another alignment: the order of sums in a matrix product may differ, and four denoising
# steps and a decoder carry that on (1e-6 was seen). A lost alpha moves these pictures by over a thousand times that.
SAME = 1e-5


@dataclass(frozen=True)
class Trained:
    """A checkpoint, the base it was trained on, and the picture that the training pipeline makes with its weights."""

    base: Path
    checkpoint: Path
    component: str
    before: Tensor
    after: Tensor
    pipe: Any


def config_of(base: Path | str, *, lora: bool) -> dict[str, Any]:
    """Return a resolved config, as far as a card reads it."""
    return {
        "name": "tiny-run",
        "seed": 3,
        "policy": {
            "pipeline": str(base),
            "revision": None,
            "dtype": "float32",
            "call": dict(FLUX_CALL),
            "lora": {"rank": RANK, "alpha": ALPHA} if lora else None,
        },
        "source": {
            "type": "on_policy_steps",
            "reward": {"type": "weighted", "parts": [{"type": "jpeg", "weight": 0.5}]},
        },
        "objective": {"type": "clipped_surrogate", "clip": 1e-4},
    }


def card_of(config: Mapping[str, Any]) -> Card:
    """Return a card with one measured metric."""
    base = {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 100}
    final = {"mean": 0.5, "low": 0.45, "high": 0.55, "n": 100}
    return Card(config=config, step=7, evaluation={"strict": {"base": base, "final": final}})


def trained(folder: Path, family: str, *, lora: bool) -> Trained:
    """Save a tiny pipeline, move its weights as training would, and commit a checkpoint."""
    pipe, component = (tiny_flux(), "transformer") if family == "flux" else (tiny_sd15(), "unet")
    base = folder / "base"
    pipe.save_pretrained(base)
    pipe = quiet(DiffusionPipeline.from_pretrained(base))
    before = picture(pipe)
    checkpoint = saved(folder, base, pipe, lora=lora)
    return Trained(base, checkpoint, component, before, picture(pipe), pipe)


def saved(folder: Path, base: Path, pipe: Any, *, lora: bool) -> Path:
    """Move the weights of a pipeline, and commit a checkpoint."""
    weights = Weights(experts(pipe), PolicySpec(str(base), lora=Lora(RANK, ALPHA) if lora else None), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights.trainable.values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    config = config_of(base, lora=lora)
    write = lambda target: write_artifacts(target, pipe, weights, card_of(config))  # noqa: E731
    return Checkpoints(folder / "run", keep=1, config=config).save(7, write)


def quiet(pipe: Any) -> Any:
    """Return `pipe` without progress bars."""
    pipe.set_progress_bar_config(disable=True)
    return pipe
