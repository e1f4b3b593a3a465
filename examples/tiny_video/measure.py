"""Measure the tiny video pipeline with the reader: how often a clip shows what its caption asks for, and moves so."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline
from PIL import Image

from examples.tiny_video.draw_clips import FRAMES, draw
from examples.tiny_video.parts import TEXT_LENGTH, from_unit, to_unit
from reward_models.verifiers.movements import Movement, follow, grade, movements
from reward_models.verifiers.scenes import SIDE

STEPS = 6
_CALL = {
    "height": SIDE,
    "width": SIDE,
    "num_frames": FRAMES,
    "guidance_scale": 1.0,
    "max_sequence_length": TEXT_LENGTH,
    "output_type": "np",
}


def sample_clips(pipe: WanPipeline, asked: list[Movement], seed: int, steps: int = STEPS) -> np.ndarray:
    """Return one clip a movement, `[B, 9, 32, 32, 3]` uint8."""
    pipe.set_progress_bar_config(disable=True)
    generator, parts = torch.Generator().manual_seed(seed), []
    for start in range(0, len(asked), 64):
        captions = [movement.caption for movement in asked[start : start + 64]]
        parts.append(pipe(captions, num_inference_steps=steps, generator=generator, **_CALL).frames)
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def sample_from_images(
    pipe: WanImageToVideoPipeline, asked: list[Movement], seed: int, count: int, steps: int = STEPS
) -> np.ndarray:
    """Return `count` clips from each of a first frame a movement, `[B * count, 9, 32, 32, 3]` uint8.

    The first frames do not tell the direction: the object stands near the middle.
    """
    pipe.set_progress_bar_config(disable=True)
    rng, generator, parts = np.random.default_rng(seed), torch.Generator().manual_seed(seed), []
    for movement in asked:
        image = Image.fromarray(draw(movement, rng, centred=True)[0])
        captions = [movement.caption] * count
        parts.append(pipe(image, captions, num_inference_steps=steps, generator=generator, **_CALL).frames)
    return (np.concatenate(parts) * 255).round().astype(np.uint8)


def grades(asked: list[Movement], clips: np.ndarray) -> dict[str, float | int]:
    """Return the means of the reader's grades, and the standard errors of those that are 0 or 1."""
    found = [asdict(grade(movement, track)) for movement, track in zip(asked, follow(clips), strict=True)]
    columns = {name: np.array([row[name] for row in found]) for name in found[0]}
    means = {name: round(float(column.mean()), 4) for name, column in columns.items()}
    shares = {name: columns[name] for name in ("strict", "direction")}
    errors = {f"{name}_se": round(float(share.std() / len(found) ** 0.5), 4) for name, share in shares.items()}
    return {**means, **errors, "n": len(found)}


@torch.no_grad()
def measure_vae(vae: AutoencoderKLWan, count: int = 5) -> dict[str, object]:
    """Return PSNR in dB over new clips, `count` of each movement, and the reader's grades after the autoencoder."""
    rng = np.random.default_rng(99)
    shown = [movement for movement in movements() for _ in range(count)]
    x = to_unit(torch.from_numpy(np.stack([draw(movement, rng) for movement in shown])))
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in x.split(50)])
    psnr = 10 * np.log10(4 / (y - x).square().mean().item())
    return {"psnr": round(psnr, 2), "decoded": grades(shown, from_unit(y).numpy())}


def measure_pipeline(folder: str, count: int, seed: int = 7) -> dict[str, dict[str, dict[str, float | int]]]:
    """Return grades of about `count` samples of each split, from text alone and from a first frame."""
    text = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    image = WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    table: dict[str, dict[str, dict[str, float | int]]] = {"text": {}, "image": {}}
    for split in ("train", "dev", "test"):
        known = movements(split)
        each = -(-count // len(known))
        asked = [movement for movement in known for _ in range(each)]
        table["text"][split] = grades(asked, sample_clips(text, asked, seed))
        table["image"][split] = grades(asked, sample_from_images(image, known, seed, each))
    return table


def strips(clips: np.ndarray, scale: int = 2) -> Image.Image:
    """Return clips `[B, F, H, W, 3]` as one picture: a row a clip, its frames from left to right."""
    film = np.concatenate(list(clips.swapaxes(0, 1)), axis=2)
    film = film.reshape(-1, *film.shape[2:]).repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(film)
