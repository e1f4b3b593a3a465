"""Make the tiny video pipeline from nothing: draw, train, measure, save. `python -m examples.tiny_video.build -h`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from PIL import Image

from examples.tiny_video.draw_clips import describe, draw, draw_dataset
from examples.tiny_video.measure import measure_pipeline, measure_vae, sample_clips, strips
from examples.tiny_video.parts import new_pipeline
from examples.tiny_video.train_vae import encode_clips, train_decoder, train_vae
from examples.tiny_video.train_wan import train_wan
from reward_models.verifiers.movements import movements

VAE_CLIPS = 4000


def trained_vae(folder: Path, steps: tuple[int, int, int], seed: int) -> AutoencoderKLWan:
    """Return the autoencoder in `folder`; where there is none, train it and keep it there."""
    if not folder.exists():
        clips = torch.from_numpy(draw_dataset(VAE_CLIPS, seed)[0])
        torch.manual_seed(seed)
        vae = train_vae(clips, *steps[:2])
        torch.manual_seed(seed)
        train_decoder(vae, clips, steps[2])
        vae.save_pretrained(folder)
    return AutoencoderKLWan.from_pretrained(folder)


def build(
    vae_folder: Path, vae_steps: tuple[int, int, int], clips: int, steps: int, lies: float, seed: int
) -> tuple[WanPipeline, dict[str, float]]:
    """Return a trained pipeline and what each part of its training took, in CPU-seconds.

    Args:
        vae_folder: Where the autoencoder is, or will be.
        vae_steps: Optimiser steps of the autoencoder, on single frames, on clips, and of the decoder alone.
        clips: How many to draw for the rest.
        steps: Optimiser steps of transformer and text encoder.
        lies: Share of the captions whose direction is drawn at random.
        seed: Of the clips, the captions, the weights and the noise.
    """
    used, started = {}, time.process_time()
    vae = trained_vae(vae_folder, vae_steps, seed)
    used["vae"] = time.process_time() - started
    drawn, shown = draw_dataset(clips, seed + 1)
    latents = encode_clips(vae, torch.from_numpy(drawn))
    used["encode"] = time.process_time() - started - sum(used.values())
    torch.manual_seed(seed + 1)
    pipe = new_pipeline(vae)
    train_wan(pipe, latents, describe(shown, lies, seed + 1), steps)
    used["transformer"] = time.process_time() - started - sum(used.values())
    return pipe, {part: round(seconds, 1) for part, seconds in used.items()}


def write_prompts(folder: Path) -> None:
    """Write the captions of each split, and for image-to-video a first frame for each caption.

    Every caption has a first frame of its own, so that no frame of a held-out caption is seen in training.
    """
    rng = np.random.default_rng(0)
    (folder / "motion_frames").mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        known = movements(split)
        (folder / f"motion_{split}.txt").write_text("".join(f"{movement.caption}\n" for movement in known))
        records = []
        for movement in known:
            name = f"motion_frames/{movement.colour}_{movement.shape}_{movement.direction}.png"
            Image.fromarray(draw(movement, rng, centred=True)[0]).save(folder / name, optimize=True)
            records.append(json.dumps({"prompt": movement.caption, "image": name}) + "\n")
        (folder / f"motion_{split}.jsonl").write_text("".join(records))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=8000)
    parser.add_argument("--vae", type=Path, default=Path("runs/tiny_video_vae"), help="where the autoencoder is kept")
    parts = ("PICTURES", "CLIPS", "DECODER")
    parser.add_argument("--vae-steps", type=int, nargs=3, default=(600, 800, 1000), metavar=parts)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--lies", type=float, default=0.6, help="share of the captions with a direction at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=240, help="clips measured for each split")
    parser.add_argument("--output", type=Path, default=Path("assets/tiny_video"))
    parser.add_argument("--prompts", type=Path, default=Path("assets/prompts"))
    parser.add_argument("--strips", type=Path, default=Path("examples/tiny_video/samples.png"))
    choices = parser.parse_args()
    torch.set_num_threads(choices.threads)
    vae_steps = tuple(choices.vae_steps)
    pipe, used = build(choices.vae, vae_steps, choices.clips, choices.steps, choices.lies, choices.seed)
    record: dict[str, object] = {"cpu_seconds": used}
    print(json.dumps(record), flush=True)
    pipe.to(torch.float16).save_pretrained(choices.output)
    write_prompts(choices.prompts)
    # What ships is measured, not what was trained: the weights as they are in the file.
    pipe = WanPipeline.from_pretrained(choices.output, dtype=torch.float32)
    record["vae"] = measure_vae(pipe.vae)
    record["samples"] = measure_pipeline(str(choices.output), choices.samples)
    strips(sample_clips(pipe, movements("test")[:6], seed=0)).save(choices.strips, optimize=True)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
