"""Pipelines that keep something from round to round: keys and values, averages of guidance."""

from __future__ import annotations

from diffusers import (
    Flux2KleinKVPipeline,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance

from tests.pipelines.zoo import decoders, images, texts
from tests.pipelines.zoo.member import Member, flow, pad_to

KEEPS = "keeps something from round to round"


def flux2_klein_kv() -> Member:
    """FLUX.2 klein KV: later rounds read the keys and values of the picture that the first one kept."""
    words, encoder = texts.qwen3(4, head=True)
    pipe = Flux2KleinKVPipeline(images.dynamic(), decoders.flux2(), encoder, words, images.flux2_transformer())
    layers = {"max_sequence_length": 24, "text_encoder_out_layers": (1, 2, 3)}
    cannot = {"guidance": "the pipeline has no guidance", "nft_step": KEEPS, "dpo_step": KEEPS}
    return Member(pipe, {**images.CALL, "height": 64, "width": 64, **layers}, cannot)  # no smaller picture is taken


def qwen_image_2_1() -> Member:
    """Qwen-Image 2.1: words, a picture and latents in one sequence; round 1 alone computes the first two."""
    encoder, processor = texts.qwen3_vl_processor()
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = QwenImage21Pipeline(images.dynamic(), decoders.qwen21(), encoder, processor, transformer)
    sizes = {"height": 32, "width": 32, "output_resolution": 64}  # the last is that of the picture it is given
    call = {**images.CALL, **sizes, "true_cfg_scale": 3.0, "negative_prompt": "blurry"}
    return Member(pipe, call, {"nft_step": KEEPS, "dpo_step": KEEPS})


def hunyuan_image() -> Member:
    """HunyuanImage: guidance that keeps an average of its own from round to round, and begins to use it late."""
    pad_to(HunyuanImagePipeline, 4 * texts.TOKENS, 16)
    (words, encoder), (letters, encoder_2) = texts.qwen25_vl(front=3), texts.byt5()
    transformer = HunyuanImageTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=32,
        rope_axes_dim=(4, 4),
    )
    guider = AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2)
    pipe = HunyuanImagePipeline(
        flow(), decoders.hunyuan_image(), encoder, words, encoder_2, letters, transformer, guider, None
    )
    return Member(pipe, {**images.CALL, "negative_prompt": "blurry"}, {"nft_step": KEEPS, "dpo_step": KEEPS})
