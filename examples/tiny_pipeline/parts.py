"""The untrained parts of the tiny pipeline: a genuine `FluxPipeline`, each part made small."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from examples.tiny_pipeline.word_tokenizers import clip_tokenizer, t5_tokenizer
from reward_models.verifiers.scenes import SIDE, WORDS

TEXT_LENGTH = 12  # tokens; the longest caption has 8 words
TEXT_WIDTH = 64
LATENT_CHANNELS = 8
LATENT_SIDE = SIDE // 4
IMAGE_TOKENS = (LATENT_SIDE // 2) ** 2


def new_vae() -> AutoencoderKL:
    """Return an autoencoder that shrinks pictures by 4 to 8 channels; 0.24 million parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def new_transformer() -> FluxTransformer2DModel:
    """Return a transformer of 1 double and 4 single blocks, width 128; 1.7 million parameters.

    The modulations and the last layer start at zero, so that at first every block is the identity; diffusers leaves
    them random.
    """
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )
    silent = [transformer.proj_out]
    for module in transformer.modules():
        if isinstance(module, AdaLayerNormZero | AdaLayerNormZeroSingle | AdaLayerNormContinuous):
            silent.append(module.linear)
    for linear in silent:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def new_pipeline(vae: AutoencoderKL) -> FluxPipeline:
    """Return the pipeline around a trained autoencoder; its transformer and text encoders are untrained."""
    clip, t5 = clip_tokenizer(WORDS, TEXT_LENGTH), t5_tokenizer(WORDS, TEXT_LENGTH)
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=clip.bos_token_id,
        # Where the encoder pools. With its default, 2, it would pool at the largest id instead.
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    t5_config = T5Config(
        vocab_size=len(t5),
        d_model=TEXT_WIDTH,
        d_kv=TEXT_WIDTH // 4,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=CLIPTextModel(clip_config),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(t5_config),
        tokenizer_2=t5,
        transformer=new_transformer(),
    )


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """Return pictures `[B, 32, 32, 3]` uint8 as the autoencoder wants them, `[B, 3, 32, 32]` in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
