"""Make the tiny video pipeline from nothing: draw, train, measure, save. `python -m examples.tiny_video.build -h`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from PIL import Image

from examples.tiny_video.draw_clips import describe, draw, draw_dataset
from examples.tiny_video.measure import measure_pipeline, measure_vae, sample_clips, strips
from examples.tiny_video.parts import new_pipeline
from examples.tiny_video.train_vae import train_vae
from examples.tiny_video.train_wan import encode_clips, train_wan
from reward_models._motion import movements


def build(
    clips: int, vae_steps: tuple[int, int], steps: int, lies: float, seed: int
) -> tuple[WanPipeline, dict[str, object]]:
    """Return a trained pipeline and what each part of its training took, in CPU-seconds.

    Args:
        clips: How many to draw.
        vae_steps: Optimiser steps of the autoencoder, on single frames and on clips.
        steps: Optimiser steps of transformer and text encoder.
        lies: Share of the captions whose direction is drawn at random.
        seed: Of the clips, the captions, the weights and the noise.
    """
    used, started = {}, time.process_time()
    drawn, shown = draw_dataset(clips, seed)
    used["draw"] = time.process_time() - started
    torch.manual_seed(seed)
    vae = train_vae(torch.from_numpy(drawn), *vae_steps)
    used["vae"] = time.process_time() - started - sum(used.values())
    latents = encode_clips(vae, torch.from_numpy(drawn))
    used["encode"] = time.process_time() - started - sum(used.values())
    torch.manual_seed(seed + 1)
    pipe = new_pipeline(vae)
    train_wan(pipe, latents, describe(shown, lies, seed), steps)
    used["transformer"] = time.process_time() - started - sum(used.values())
    return pipe, {"cpu_seconds": {k: round(v, 1) for k, v in used.items()}, "vae_steps": vae_steps, "steps": steps}


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
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--vae-steps", type=int, nargs=2, default=(1000, 600), metavar=("PICTURES", "CLIPS"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lies", type=float, default=0.35, help="share of the captions with a direction at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=480, help="clips measured for each split")
    parser.add_argument("--output", type=Path, default=Path("assets/tiny_video"))
    parser.add_argument("--prompts", type=Path, default=Path("assets/prompts"))
    parser.add_argument("--strips", type=Path, default=Path("examples/tiny_video/samples.png"))
    choices = parser.parse_args()
    torch.set_num_threads(choices.threads)
    pipe, record = build(choices.clips, tuple(choices.vae_steps), choices.steps, choices.lies, choices.seed)
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
