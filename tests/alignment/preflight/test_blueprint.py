"""A pipeline without weights is as large as the real one, and is given what the real one is given."""

from __future__ import annotations

import pytest
from PIL import Image

from alignment.policy.networks.spec import PolicySpec
from alignment.preflight.plan.blueprint import ARCHITECTURES, describe, draw

SIZES = {
    "black-forest-labs/FLUX.1-dev": 11.901,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 0.860,
    "stabilityai/stable-diffusion-xl-base-1.0": 2.567,
    "stabilityai/stable-diffusion-3.5-medium": 2.243,
    "hunyuanvideo-community/HunyuanVideo": 12.821,
    "models/skyreels-v1-i2v": 12.821,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 1.419,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": 14.288,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": 14.288,
    "Qwen/Qwen-Image": 20.430,
    "Qwen/Qwen-Image-Edit": 20.430,
    "Tongyi-MAI/Z-Image-Turbo": 6.155,
}
"""Billions of parameters of the denoiser, as published or counted in the checkpoint."""


def test_every_size_that_ships_is_checked() -> None:
    shipped = {str(file.relative_to(ARCHITECTURES).with_suffix("")) for file in ARCHITECTURES.rglob("*.yaml")}
    assert shipped == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_checkpoints(name: str) -> None:
    pipe = draw(PolicySpec(name, dtype="bfloat16"))
    denoiser = pipe.components["unet" if "unet" in describe(PolicySpec(name)).parts else "transformer"]
    assert sum(p.numel() for p in denoiser.parameters()) / 1e9 == pytest.approx(SIZES[name], abs=1e-3)


def test_a_text_encoder_that_sees_is_told_where_the_picture_is() -> None:
    """The processor counts the places of pictures and of clips in what the stand-in's vocabulary cut."""
    pipe = draw(PolicySpec("Qwen/Qwen-Image-Edit", dtype="bfloat16"))
    side = 2 * pipe.processor.image_processor.patch_size * pipe.processor.image_processor.merge_size
    cut = pipe.processor(text=["Picture: <|image_pad|>. " + "word " * 9], images=[Image.new("RGB", (side, side))])
    assert list(cut["input_ids"][0]).count(pipe.processor.image_token_id) == 4
