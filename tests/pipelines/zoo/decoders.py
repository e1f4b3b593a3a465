"""Autoencoders with random weights, as small as their classes allow."""

from __future__ import annotations

from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
)

CHANNELS = 4
"""Of a latent."""


def kl(*, shift: float | None = None, levels: int = 2) -> AutoencoderKL:
    """Return the autoencoder of Stable Diffusion and most image models; each level after the first halves a side."""
    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16)[:levels],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=32,
        shift_factor=shift,
        scaling_factor=1.0,
    )


def flux2() -> AutoencoderKLFlux2:
    """Return the autoencoder of FLUX.2, which halves a side."""
    return AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=32,
    )


def dc() -> AutoencoderDC:
    """Return the deep-compression autoencoder of Sana, which halves a side."""
    return AutoencoderDC(
        in_channels=3,
        latent_channels=CHANNELS,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )


_WAN = {
    "base_dim": 4,
    "z_dim": CHANNELS,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.0] * CHANNELS,
    "latents_std": [1.0] * CHANNELS,
}


def wan() -> AutoencoderKLWan:
    """Return the video autoencoder of Wan and SkyReels-V2: an eighth of a side, a quarter of the frames."""
    return AutoencoderKLWan(**_WAN)


def qwen() -> AutoencoderKLQwenImage:
    """Return the autoencoder of Qwen-Image: Wan's, for one frame."""
    return AutoencoderKLQwenImage(**_WAN)


def qwen21() -> AutoencoderKLQwenImage21:
    """Return the autoencoder of Qwen-Image 2.1: a sixteenth of a side, four channels of pixels."""
    return AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )


def hunyuan() -> AutoencoderKLHunyuanVideo:
    """Return the video autoencoder of HunyuanVideo: an eighth of a side, a quarter of the frames."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )


def ltx() -> AutoencoderKLLTXVideo:
    """Return the video autoencoder of LTX-Video: a quarter of a side and of the frames."""
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )


def cogvideox() -> AutoencoderKLCogVideoX:
    """Return the video autoencoder of CogVideoX: an eighth of a side, a quarter of the frames."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )


def mochi() -> AutoencoderKLMochi:
    """Return the video autoencoder of Mochi: an eighth of a side, a sixth of the frames."""
    return AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )


def hunyuan_image() -> AutoencoderKLHunyuanImage:
    """Return the decoder of HunyuanImage: 4 pixels to a latent."""
    widths = {"block_out_channels": (32, 32, 32), "layers_per_block": 1, "spatial_compression_ratio": 4}
    return AutoencoderKLHunyuanImage(3, 3, 8, **widths, sample_size=16, scaling_factor=0.75)


def hunyuan15() -> AutoencoderKLHunyuanVideo15:
    """Return the video autoencoder of HunyuanVideo 1.5: a quarter of a side, half of the frames."""
    return AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
