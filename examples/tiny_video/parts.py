"""The untrained parts of the tiny video pipeline: a genuine `WanPipeline`, each part made small.

The design is that of Wan 2.2 TI2V (arXiv 2503.20314 and its 5B model): one transformer serves text-to-video and
image-to-video, because every token has a time of its own; given an image, the tokens of the first latent frame stand at
time 0. Its autoencoder folds 2 x 2 pixels into channels before the first convolution.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from examples.tiny_pipeline.word_tokenizers import t5_tokenizer
from reward_models.verifiers.movements import WORDS

TEXT_LENGTH = 8  # tokens; every caption has 5 words and an end
TEXT_WIDTH = 64
LATENT_CHANNELS = 16
WIDTH, HEADS, BLOCKS = 128, 4, 5


def new_vae() -> AutoencoderKLWan:
    """Return an autoencoder that shrinks clips by 4 in time and by 8 in space; 0.67 million parameters."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def new_transformer() -> WanTransformer3DModel:
    """Return a transformer of 5 blocks, width 128; 1.3 million parameters. Its last layer starts at zero."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=3 * WIDTH,
        num_layers=BLOCKS,
        rope_max_seq_len=32,
    )
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def new_pipeline(vae: AutoencoderKLWan) -> WanPipeline:
    """Return the pipeline around a trained autoencoder; its transformer and text encoder are untrained."""
    tokenizer = t5_tokenizer(WORDS, TEXT_LENGTH)
    text_config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=TEXT_WIDTH // 4,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
    )
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text_config),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
        transformer=new_transformer(),
        expand_timesteps=True,
    )


def to_unit(clips: Tensor) -> Tensor:
    """Return clips `[B, F, H, W, 3]` uint8 as the autoencoder wants them, `[B, 3, F, H, W]` in [-1, 1]."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def from_unit(video: Tensor) -> Tensor:
    """Return what `to_unit` was given, rounded."""
    return ((video + 1) * 127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 4, 1)


def to_network(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """Return latents `[B, 16, T, h, w]` in the transformer's scaling, as the pipeline makes them."""
    mean, std = _scaling(vae)
    return (z - mean) / std


def from_network(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """Return what `to_network` was given."""
    mean, std = _scaling(vae)
    return z * std + mean


def _scaling(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean, std
