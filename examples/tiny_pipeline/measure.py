"""Measure the tiny pipeline with the reader: how often a picture shows what its caption asks for."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from PIL import Image

from evals.drawing import KINDS, draw_dataset, sample_scene
from examples.tiny_pipeline.parts import TEXT_LENGTH, to_unit
from reward_models.verifiers.scenes import SIDE, Scene, grade, parse, read, single_captions


def sample_pictures(pipe: FluxPipeline, captions: list[str], seed: int, steps: int = 8) -> np.ndarray:
    """Return one picture a caption, `[B, 32, 32, 3]` uint8."""
    pipe.set_progress_bar_config(disable=True)
    generator, parts = torch.Generator().manual_seed(seed), []
    for start in range(0, len(captions), 128):
        part = pipe(
            captions[start : start + 128],
            height=SIDE,
            width=SIDE,
            num_inference_steps=steps,
            max_sequence_length=TEXT_LENGTH,
            generator=generator,
            output_type="np",
        )
        parts.append(part.images)
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def grades(scenes: list[Scene], pictures: np.ndarray) -> np.ndarray:
    """Return strict and graded of each picture, `[B, 2]`."""
    return np.array([grade(scene, seen) for scene, seen in zip(scenes, read(pictures), strict=True)])


def summary(scores: np.ndarray) -> dict[str, float | int]:
    """Return means of strict and graded with their standard errors, from scores `[B, 2]`."""
    (strict, graded), errors = scores.mean(0), scores.std(0, ddof=1) / len(scores) ** 0.5
    values = {"strict": strict, "strict_se": errors[0], "graded": graded, "graded_se": errors[1]}
    return {**{name: round(float(v), 4) for name, v in values.items()}, "n": len(scores)}


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, count: int = 1000) -> dict[str, object]:
    """Return PSNR in dB over new pictures, and the reader's grades before and after the autoencoder."""
    pictures, scenes = draw_dataset(count, seed=99)
    x = to_unit(torch.from_numpy(pictures))
    y = vae.decode(vae.encode(x).latent_dist.mode()).sample
    back = ((y.permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255).round().byte().numpy()
    psnr = 10 * np.log10(4 / (y - x).square().mean().item())
    drawn, decoded = summary(grades(scenes, pictures)), summary(grades(scenes, back))
    return {"psnr": round(psnr, 2), "drawn": drawn, "decoded": decoded}


def measure_pipeline(pipe: FluxPipeline, count: int, seed: int = 7) -> dict[str, dict[str, float | int]]:
    """Return grades of about `count` samples for each kind and split of captions, 8 Euler steps each."""
    table = {}
    for split in ("train", "dev", "test"):
        for kind in KINDS:
            rng = np.random.default_rng(seed)
            if kind == "single":
                captions = single_captions(split)
                scenes = [parse(c) for c in captions] * max(1, round(count / len(captions)))
            else:
                scenes = [sample_scene(rng, kind, split) for _ in range(count)]
            table[f"{kind} {split}"] = summary(grades(scenes, sample_pictures(pipe, [s.caption for s in scenes], seed)))
    return table


def sample_grid(pipe: FluxPipeline, path: str, columns: int = 9, scale: int = 3) -> list[str]:
    """Write a picture of samples: a row each for three held-out captions with one group, one of "and", one relation."""
    rng = np.random.default_rng(1)
    captions = single_captions("test")[1::3] + [sample_scene(rng, k, "test").caption for k in ("and", "relation")]
    pictures = sample_pictures(pipe, [c for c in captions for _ in range(columns)], seed=0)
    grid = pictures.reshape(len(captions), columns, SIDE, SIDE, 3).swapaxes(1, 2)
    grid = grid.reshape(len(captions) * SIDE, columns * SIDE, 3)
    grid = grid.repeat(scale, 0).repeat(scale, 1)
    Image.fromarray(grid).save(path, optimize=True)
    return captions
