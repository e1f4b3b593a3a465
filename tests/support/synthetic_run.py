"""A run folder that no training made: written through the Recorder, with numbers and pictures from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from alignment.reports.record import Recorder
from alignment.reports.run_folder import CONFIG, Evaluated
from reward_models.base import Media, Rewards

PICTURES_PER_PROMPT = 4
COLOURS = {"red": (0.86, 0.2, 0.18), "green": (0.2, 0.62, 0.3), "blue": (0.2, 0.36, 0.85), "yellow": (0.95, 0.78, 0.2)}
PROMPTS = tuple(
    f"{count} {colour} {shape}{'s' if count != 'one' else ''}"
    for colour in COLOURS
    for shape in ("circle", "square", "diamond")
    for count in ("one", "two", "three")
)
HOSTILE = "<script>alert('x')</script> & \"quotes\" \x1b[31m"


def media(prompts: tuple[str, ...], right: torch.Tensor, *, frames: int = 1, size: int = 32) -> Media:
    """Draw each prompt as discs of its colour; where `right` is False, of another."""
    rows = torch.arange(size, dtype=torch.float32)
    pixels = torch.full((len(prompts), frames, 3, size, size), 0.95)
    for index, prompt in enumerate(prompts):
        count, colour = [*prompt.split(), "", ""][:2]
        shade = torch.tensor(COLOURS.get(colour, (0.5, 0.5, 0.5)))
        shade = shade if right[index] else shade.roll(1)
        for k in range({"two": 2, "three": 3}.get(count, 1)):
            for frame in range(frames):
                x, y = size * (0.25 + 0.25 * k), size * (0.3 + 0.2 * ((k + index) % 3)) + frame
                inside = (rows[None, :] - x) ** 2 + (rows[:, None] - y) ** 2 < (size * 0.13) ** 2
                pixels[index, frame][:, inside] = shade[:, None]
    return Media(pixels, 8.0 if frames > 1 else None)


def evaluated(share: float, *, frames: int = 1, seed: int = 0, hostile: bool = False) -> Evaluated:
    """Return an evaluation in which about `share` of the pictures are right."""
    prompts = ((HOSTILE,) if hostile else ()) + PROMPTS
    rows = tuple(text for _ in range(PICTURES_PER_PROMPT) for text in prompts)
    draw = torch.Generator().manual_seed(seed)
    right = torch.rand(len(rows), generator=draw) < share
    graded = (0.35 + 0.5 * right.float() + 0.1 * torch.randn(len(rows), generator=draw)).clamp(0, 1)
    shown = 16
    return Evaluated(
        prompts=rows,
        seeds=torch.arange(len(rows)),
        scores={"strict": right.float(), "graded": graded},
        media=media(rows[:shown], right[:shown], frames=frames),
    )


def metrics(step: int, steps: int) -> dict[str, float]:
    """Return one step's numbers, with every name a run has."""
    draw = torch.Generator().manual_seed(1000 + step)
    noise = torch.randn(8, generator=draw).tolist()
    progress = 1 - math.exp(-3 * step / steps)
    seconds = {"rollout": 0.9 + 0.05 * noise[0], "reward": 0.12, "update": 0.5 + 0.04 * noise[1]}
    seconds["evaluation"] = 2.2 if step and step % 20 == 0 else 0.0
    seconds["checkpoint"] = 0.4 if step == steps - 1 else 0.0
    return {
        "reward/mean": 0.45 + 0.3 * progress + 0.03 * noise[2],
        "reward/group_std": 0.2 - 0.05 * progress,
        "reward/zero_std_fraction": 0.1 + 0.3 * progress,
        "reward/unscored_fraction": 0.0,
        "reward/strict": 0.3 + 0.25 * progress + 0.03 * noise[3],
        "reward/brevity": 0.6 - 0.2 * progress + 0.03 * noise[1],
        "conflict/strict~brevity": -0.4 - 0.3 * progress,
        "ratio/mean": 1 + 1e-5 * noise[4],
        "ratio/max": 1 + 2e-4 * (1 + abs(noise[5])),
        "ratio/min": 1 - 2e-4 * (1 + abs(noise[6])),
        "ratio/first_error_max": 1.2e-7,
        "clip/fraction": 0.15 + 0.02 * noise[5],
        "kl/reference": 0.002 * progress,
        "loss": 1e-3 * noise[7],
        "grad/norm": 0.4 * math.exp(0.3 * noise[0]),
        "learning_rate": 1e-3 * (1 - step / steps),
        **{f"seconds/{phase}": value for phase, value in seconds.items()},
        "seconds/total": sum(seconds[phase] for phase in ("rollout", "reward", "update")) + 0.03,
        "samples_per_second": 240.0,
        "memory/peak_bytes": 1.3e9,
    }


FEW = ("reward/mean", "loss")
"""Metrics of a run whose report has no more charts than it needs: each takes a twentieth of a second to draw."""


def write_run(
    folder: Path,
    *,
    steps: int = 80,
    seed: int = 0,
    frames: int = 1,
    hostile: bool = False,
    gain: float = 0.25,
    only: Sequence[str] = (),
) -> Path:
    """Write a whole run to `folder` and return it; `only` names the metrics it has, where it does not have all."""
    config = {
        "name": folder.name,
        "seed": seed,
        "steps": steps,
        "policy": {"pipeline": "assets/tiny_flux", "lora": {"rank": 16, "alpha": None}},
        "source": {"type": "on_policy_steps", "prompts": 8, "reward": {"type": "verifier"}},
        "objective": {"type": "clipped_surrogate", "clip": 1e-4},
    }
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    with Recorder(folder, total_steps=steps, quiet=True) as record:
        record.evaluation("base", 0, evaluated(0.3, frames=frames, seed=seed, hostile=hostile))
        for step in range(steps):
            record.step(step, {name: x for name, x in metrics(step, steps).items() if not only or name in only})
            if step % 20 == 0:
                progress = 1 - math.exp(-3 * step / steps)
                result = evaluated(0.3 + gain * progress, frames=frames, seed=seed, hostile=hostile)
                rewards = Rewards(result.scores["graded"][: len(result.media)])
                record.samples("train", step, result.media, result.prompts[: len(result.media)], rewards)
                if step:
                    record.evaluation(f"step-{step:06d}", step, result)
        record.evaluation("final", steps, evaluated(0.3 + gain, frames=frames, seed=seed + 100, hostile=hostile))
        record.summary(seed=seed, steps=steps, wall_seconds=148.2, peak_memory_bytes=1_300_000_000)
    return folder
