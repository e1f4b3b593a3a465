"""The smallest diffusion there is: a mixture of two spots in the plane, an MLP, a genuine diffusers pipeline around it.

Everything the program does to a pipeline can be done to this one in milliseconds, and what is right is known.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import diffusers
import torch
from diffusers import ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from torch import Tensor, nn

from alignment.config.run import BatchSettings, Data, Evaluation, Optimizer, Output, PolicySpec, Run, Snapshots
from alignment.data.batches import Batch, Experience
from alignment.training.loop import Trainer
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from reward_models.combinators.function import Function

STEPS = 10
SCALE = 8.0  # half the width of the plane that pixels show
SPREAD = 0.3
GROUPS = 8


class ToyNetwork(ModelMixin, ConfigMixin):
    """Velocity of a point at a time: an MLP."""

    @register_to_config
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, width), nn.Linear(width, width)])
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity `[n, 2]` at `x` `[n, 2]` and `t` in [0, 1], `[n]`."""
        h = torch.cat([x, t[:, None]], dim=1)
        for block in self.blocks:
            h = nn.functional.silu(block(h))
        return self.out(h)


class ToyPipeline(DiffusionPipeline):
    """Denoises points; its pictures are one pixel whose red and green are the coordinates."""

    def __init__(self, transformer: ToyNetwork, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def encode_prompt(self, prompt: list[str]) -> tuple[Tensor]:
        """Return an embedding that nothing depends on."""
        return (torch.zeros(len(prompt), 1),)

    def guided(self, v: Tensor, before: Tensor) -> Tensor:
        """Return what is stepped, from a model output and the one of the round before; here the first alone."""
        return v

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = STEPS,
        generator: Sequence[torch.Generator] = (),
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> tuple[Tensor]:
        """Denoise one point a prompt."""
        self.encode_prompt(prompt)
        x = torch.stack([torch.randn(2, generator=g) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        before = torch.zeros_like(x)
        for t in self.scheduler.timesteps:
            v = self.transformer(x, (t / 1000).expand(len(x)))
            x = self.scheduler.step(self.guided(v, before), t, x, return_dict=False)[0]
            before = v
        return (x,) if output_type == "latent" else (pixels(x),)


# Where diffusers looks for the class that a saved pipeline names.
diffusers.ToyPipeline = ToyPipeline


def pixels(x: Tensor) -> Tensor:
    """Return points `[n, 2]` as pictures `[n, 3, 1, 1]`."""
    return torch.cat([x / (2 * SCALE) + 0.5, torch.zeros(len(x), 1)], dim=1)[:, :, None, None]


def points(picture: Tensor) -> Tensor:
    """Return what `pixels` was given, from clips `[n, 1, 3, 1, 1]`."""
    return (picture[:, 0, :2, 0, 0] - 0.5) * 2 * SCALE


def near_the_right_mode(picture: Tensor, prompts: Sequence[str]) -> Tensor:
    """Reward: minus the distance to (2, 0)."""
    return -(points(picture) - torch.tensor([2.0, 0.0])).norm(dim=1)


def base_pipeline(updates: int) -> ToyPipeline:
    """Return the pipeline after so many updates of flow matching on the mixture of N((+-2, 0), SPREAD^2)."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ToyNetwork()
    adam = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(updates):
        side = torch.randint(2, (256, 1), generator=generator) * 4.0 - 2.0
        x0 = torch.cat([side, torch.zeros_like(side)], dim=1) + SPREAD * torch.randn(256, 2, generator=generator)
        noise, t = torch.randn(256, 2, generator=generator), torch.rand(256, generator=generator)
        v = network((1 - t[:, None]) * x0 + t[:, None] * noise, t)
        adam.zero_grad()
        (v - (noise - x0)).square().mean().backward()
        adam.step()
    return ToyPipeline(network, FlowMatchEulerDiscreteScheduler())


_base = functools.cache(base_pipeline)  # many files begin at the same


def saved(folder: Path, updates: int) -> Path:
    """Save `base_pipeline` and its prompts into `folder` and return it."""
    _base(updates).save_pretrained(folder)
    (folder / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(GROUPS)))
    return folder


def labelled(folder: Path, *, wanted: bool = False, count: int = 256) -> str:
    """Write a data file of points with labels, half of them on the right and wanted, or all, and return its name."""
    x = _spots(count)
    if not wanted:
        x[1::2, 0] *= -1
    names = _drawn(folder / "labelled", x)
    return _records(folder / ("wanted.jsonl" if wanted else "labelled.jsonl"), [
        {"prompt": f"prompt {i % GROUPS}", "media": name, "label": x[i, 0].item() > 0} for i, name in enumerate(names)
    ])  # fmt: skip


def pairs(folder: Path, count: int = 256) -> str:
    """Write a data file of pairs, the point on the right chosen, and return its name."""
    x = _spots(2 * count)
    x[count:, 0] *= -1
    names = _drawn(folder / "pairs", x)
    return _records(folder / "pairs.jsonl", [
        {"prompt": f"prompt {i % GROUPS}", "chosen": names[i], "rejected": names[count + i]} for i in range(count)
    ])  # fmt: skip


def _spots(count: int) -> Tensor:
    """Return points of the spot on the right, `[count, 2]`."""
    return torch.tensor([2.0, 0.0]) + SPREAD * torch.randn(count, 2, generator=torch.Generator().manual_seed(1))


def _drawn(folder: Path, x: Tensor) -> list[str]:
    """Write points as pictures of one pixel and return their names, relative to the folder's own."""
    folder.mkdir(exist_ok=True)
    levels = (pixels(x).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(levels):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return [f"{folder.name}/{i}.png" for i in range(len(x))]


def _records(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def toy_run(folder: Path, source: object, objective: object, steps: int, **changes: object) -> Run:
    """Return a run on the pipeline in `folder`; `changes` are other fields of `Run`."""
    return Run(
        **{
            "name": "toy",
            "policy": PolicySpec(str(folder), call={"num_inference_steps": STEPS}),
            "data": Data(str(folder / "prompts.txt")),
            "source": source,
            "objective": objective,
            "steps": steps,
            "optimizer": Optimizer(learning_rate=1e-3),
            "snapshots": Snapshots(),
            "batch": BatchSettings(microbatch=1024),
            "evaluation": Evaluation(),
            "output": Output(),
            "device": "cpu",
            **changes,
        }
    )


def trainer_of(run: Run) -> Trainer:
    """Return the loaded trainer of a run."""
    return load(run, Runtime(run))


class Enough(Exception):
    """A run has taken as many steps as a test looks at."""


def fit(trainer: Trainer, steps: int | None = None) -> list[dict[str, float]]:
    """Train to the end, or the first `steps` of a longer run, and return the metrics of every step."""
    lines: list[dict[str, float]] = []

    def after(step: int, experience: Experience[Batch], metrics: dict[str, float]) -> None:
        lines.append(metrics)
        if len(lines) == steps:
            raise Enough

    with suppress(Enough):
        trainer.fit(0, after)
    return lines


REWARD = Function(f"{__name__}:near_the_right_mode")
