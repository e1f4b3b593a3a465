"""Make the tiny pipeline from nothing: draw, train, measure, save. `python -m examples.tiny_pipeline.build --help`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import FluxPipeline

from evals.drawing import draw_dataset
from examples.tiny_pipeline.measure import measure_pipeline, measure_vae, sample_grid
from examples.tiny_pipeline.parts import new_pipeline
from examples.tiny_pipeline.train_flux import encode_pictures, train_flux
from examples.tiny_pipeline.train_vae import train_vae
from reward_models.verifiers.scenes import single_captions


def build(pictures: int, vae_steps: int, minutes: float, seed: int) -> tuple[FluxPipeline, dict[str, object]]:
    """Return a trained pipeline and the record of its training.

    Args:
        pictures: How many to draw.
        vae_steps: Optimiser steps of the autoencoder.
        minutes: CPU-minutes of everything: drawing, autoencoder, encoding and transformer.
        seed: Of the pictures, the weights and the noise.
    """
    torch.manual_seed(seed)
    started = time.process_time()
    drawn, scenes = draw_dataset(pictures, seed)
    used = {"draw": time.process_time() - started}
    vae = train_vae(torch.from_numpy(drawn), vae_steps)
    used["vae"] = time.process_time() - started - sum(used.values())
    latents = encode_pictures(vae, torch.from_numpy(drawn))
    used["encode"] = time.process_time() - started - sum(used.values())
    pipe = new_pipeline(vae)
    left = 60 * minutes - sum(used.values())
    steps = train_flux(pipe, latents, [scene.caption for scene in scenes], left)
    used["transformer"] = time.process_time() - started - sum(used.values())
    return pipe, {"cpu_seconds": {k: round(v, 1) for k, v in used.items()}, "vae_steps": vae_steps, "steps": steps}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=29.5, help="CPU-minutes of all training together")
    parser.add_argument("--pictures", type=int, default=60_000)
    parser.add_argument("--vae-steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=900, help="pictures measured for each kind and split")
    parser.add_argument("--output", type=Path, default=Path("assets/tiny_flux"))
    parser.add_argument("--prompts", type=Path, default=Path("assets/prompts"))
    parser.add_argument("--grid", type=Path, default=Path("examples/tiny_pipeline/samples.png"))
    choices = parser.parse_args()
    torch.set_num_threads(choices.threads)
    started = time.time()
    pipe, record = build(choices.pictures, choices.vae_steps, choices.minutes, choices.seed)
    record["wall_seconds"] = round(time.time() - started)
    print(json.dumps(record), flush=True)
    pipe.to(torch.float16).save_pretrained(choices.output)
    for split in ("train", "dev", "test"):
        (choices.prompts / f"shapes_{split}.txt").write_text("\n".join(single_captions(split)) + "\n")
    # What ships is measured, not what was trained: the weights as they are in the file.
    pipe = FluxPipeline.from_pretrained(choices.output, torch_dtype=torch.float32)
    record["vae"] = measure_vae(pipe.vae)
    record["grid"] = sample_grid(pipe, str(choices.grid))
    record["samples"] = measure_pipeline(pipe, choices.samples)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
