"""Pipelines that make more than a picture: sound beside the clip, a checker of their own, two looks a step."""

from __future__ import annotations

import diffusers
import torch
from diffusers import (
    AutoencoderKLCosmos,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    ConfigMixin,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    ModelMixin,
)
from diffusers.pipelines.cosmos import pipeline_cosmos_text2world
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from tests.pipelines.zoo import texts
from tests.pipelines.zoo.member import Member, flow
from tests.pipelines.zoo.videos import TEXT_CALL


class CosmosSafetyChecker(ModelMixin, ConfigMixin):
    """Lets everything pass; the real one is larger than the model it guards and comes in a package of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # a network without weights has no dtype

    def check_text_safety(self, prompt: str) -> bool:
        """Return that the prompt is harmless."""
        return True

    def check_video_safety(self, video: object) -> object:
        """Return the clip as it is."""
        return video


def cosmos() -> Member:
    """Cosmos 1: variance-exploding noise, and two calls of the scheduler a step with guidance."""
    words, encoder = texts.t5()
    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        rope_scale=(2.0, 1.0, 1.0),
    )
    vae = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    # Where the pipeline looks for its checker, when it is built and when it is loaded.
    pipeline_cosmos_text2world.CosmosSafetyChecker = diffusers.CosmosSafetyChecker = CosmosSafetyChecker
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min")
    pipe = CosmosTextToWorldPipeline(encoder, words, transformer, vae, scheduler, CosmosSafetyChecker())
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def ltx2() -> Member:
    """LTX-2: clip and sound denoised together, each by a scheduler of its own."""
    words, encoder = texts.gemma3()
    layers, width = encoder.config.text_config.num_hidden_layers, encoder.config.text_config.hidden_size
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=width,
        rope_double_precision=False,
        rope_type="split",
    )
    heads = {
        f"{kind}_connector_{name}": value
        for kind in ("video", "audio")
        for name, value in (
            ("num_attention_heads", 4),
            ("attention_head_dim", width // 4),
            ("num_layers", 1),
            ("num_learnable_registers", None),
        )
    }
    connectors = LTX2TextConnectors(
        caption_channels=width,
        text_proj_in_factor=layers + 1,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
        **heads,
    )
    audio, vocoder = _ltx2_sound()
    pipe = LTX2Pipeline(flow(), _ltx2_vae(), audio, encoder, words, connectors, transformer, vocoder)
    plain = {"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0, "use_cross_timestep": False}
    sound = {"audio_guidance_scale": 3.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0}
    off = {"audio_guidance_rescale": 0.0, "spatio_temporal_guidance_blocks": None}
    return Member(pipe, {**TEXT_CALL, **plain, **sound, **off, "guidance_scale": 3.0})


def _ltx2_vae() -> AutoencoderKLLTX2Video:
    """Return a video autoencoder that quarters a side and the frames."""
    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=1,
    )


def _ltx2_sound() -> tuple[AutoencoderKLLTX2Audio, LTX2Vocoder]:
    audio = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vocoder = LTX2Vocoder(
        in_channels=2 * 8,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )
    return audio, vocoder
