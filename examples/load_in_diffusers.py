"""Use what a run made, with plain diffusers: this file needs nothing of visalign.

python examples/load_in_diffusers.py assets/tiny_flux runs/quickstart/checkpoint-100 "two red circles"
"""

from __future__ import annotations

import sys

import torch
from diffusers import DiffusionPipeline
from PIL import Image


def main(pipeline: str, checkpoint: str, prompt: str) -> None:
    """Make eight pictures before and eight after, from the same noise, and write them as two rows."""
    pipe = DiffusionPipeline.from_pretrained(pipeline, dtype=torch.float32)
    call = {"height": 32, "width": 32, "num_inference_steps": 4, "max_sequence_length": 12}
    rows = []
    for load in (False, True):
        if load:
            pipe.load_lora_weights(checkpoint)
        noise = [torch.Generator().manual_seed(seed) for seed in range(8)]
        rows.append(pipe([prompt] * 8, generator=noise, **call).images)
    sheet = Image.new("RGB", (8 * 96, 2 * 96))
    for y, pictures in enumerate(rows):
        for x, picture in enumerate(pictures):
            sheet.paste(picture.resize((96, 96), Image.Resampling.NEAREST), (x * 96, y * 96))
    sheet.save("before_and_after.png")
    print("before_and_after.png: above before, below after")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
