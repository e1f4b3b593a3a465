"""Pipelines that start from a picture or a mask."""

from __future__ import annotations

from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxFillPipeline,
    FluxKontextPipeline,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
    LTXImageToVideoPipeline,
    MotifVideoImage2VideoPipeline,
    MotifVideoTransformer3DModel,
    QwenImageEditPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Transformer3DModel,
    WanImageToVideoPipeline,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions as qwen_dimensions

from tests.pipelines.zoo import decoders, images, texts, videos
from tests.pipelines.zoo.member import Member, flow


def flux_kontext() -> Member:
    """FLUX.1 Kontext: the tokens of a picture beside those of the state."""
    (words, encoder), (words_2, encoder_2) = texts.clip(), texts.t5()
    pipe = FluxKontextPipeline(
        images.dynamic(), decoders.kl(shift=0.0), encoder, words, encoder_2, words_2, images.flux_transformer()
    )
    fixed = {"max_area": 16 * 16, "_auto_resize": False}
    return Member(pipe, {**images.TEXT_CALL, **fixed, "guidance_scale": 2.5})


def flux_fill() -> Member:
    """FLUX.1 Fill: a masked picture and its mask in the channels of the input."""
    (words, encoder), (words_2, encoder_2) = texts.clip(), texts.t5()
    # State 16, masked picture 16, mask 2 x 2 pixels a latent, 2 x 2 latents a token.
    transformer = images.flux_transformer(16 + 16 + 4 * 4, out=16)
    pipe = FluxFillPipeline(images.dynamic(), decoders.kl(shift=0.0), encoder, words, encoder_2, words_2, transformer)
    return Member(pipe, {**images.TEXT_CALL, "guidance_scale": 30.0})


def flux_controlnet() -> Member:
    """FLUX.1 with a ControlNet: a second network in the loop, which is not trained."""
    (words, encoder), (words_2, encoder_2) = texts.clip(), texts.t5()
    transformer = images.flux_transformer()
    control = FluxControlNetModel.from_transformer(
        transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    pipe = FluxControlNetPipeline(
        images.dynamic(), decoders.kl(shift=0.0), encoder, words, encoder_2, words_2, transformer, control
    )
    return Member(pipe, {**images.TEXT_CALL, "guidance_scale": 3.5})


def qwen_image_edit() -> Member:
    """Qwen-Image-Edit: the picture read by the language model and, as tokens, by the transformer.

    It scales every picture to a megapixel, here to a sixty-fourth of that: the size is a number in its module.
    """
    pipeline_qwenimage_edit.calculate_dimensions = _small_dimensions
    words, encoder, processor = texts.qwen25_vl_processor()
    transformer = images.qwen_transformer()
    pipe = QwenImageEditPipeline(images.dynamic(), decoders.qwen(), encoder, words, processor, transformer)
    size = {"height": 32, "width": 32}
    return Member(pipe, {**images.CALL, **size, "negative_prompt": "blurry", "true_cfg_scale": 3.0})


def _small_dimensions(area: int, ratio: float) -> tuple[int, int, None]:
    return qwen_dimensions(area // 64, ratio)


def hunyuan_i2v() -> Member:
    """HunyuanVideo I2V: the picture in the channels of the input and in the prompt."""
    (words_2, encoder_2), (words, encoder, eyes, template) = texts.clip(longest=videos.CLIP_TOKENS), texts.llava()
    transformer = videos.hunyuan_transformer(2 * 4 + 1, guidance=False, condition="latent_concat")
    pipe = HunyuanVideoImageToVideoPipeline(
        encoder, words, transformer, decoders.hunyuan(), flow(7.0), encoder_2, words_2, eyes
    )
    fixed = {"prompt_template": template, "max_sequence_length": 24}
    return Member(pipe, {**videos.CALL, "num_frames": 9, **fixed, "guidance_scale": 1.0})


def skyreels_v1() -> Member:
    """SkyReels-V1 I2V: HunyuanVideo's transformer, the picture in the channels of the input."""
    (words, encoder), (words_2, encoder_2) = texts.llama(), texts.clip(longest=videos.CLIP_TOKENS)
    transformer = videos.hunyuan_transformer(2 * 4)
    pipe = HunyuanSkyreelsImageToVideoPipeline(
        encoder, words, transformer, decoders.hunyuan(), flow(7.0), encoder_2, words_2
    )
    fixed = {"prompt_template": videos.template(words)}
    return Member(
        pipe, {**videos.TEXT_CALL, **fixed, "guidance_scale": 1.0, "true_cfg_scale": 3.0, "negative_prompt": "blurry"}
    )


def wan_i2v() -> Member:
    """Wan 2.1 I2V: the first frame in the channels of the input, and seen by CLIP."""
    words, encoder = texts.t5(umt5=True)
    reader, eyes = texts.clip_vision()
    transformer = videos.wan_transformer(channels=4 * 2 + 4, image_dim=16, added_kv_proj_dim=32)
    pipe = WanImageToVideoPipeline(words, encoder, decoders.wan(), videos.unipc(3.0), reader, eyes, transformer)
    return Member(pipe, {**videos.TEXT_CALL, "guidance_scale": 3.0})


def wan_2_2_i2v() -> Member:
    """Wan 2.2 I2V: two experts, no CLIP."""
    words, encoder = texts.t5(umt5=True)
    experts = [videos.wan_transformer(channels=4 * 2 + 4) for _ in range(2)]
    pipe = WanImageToVideoPipeline(
        words, encoder, decoders.wan(), videos.unipc(3.0), None, None, *experts, boundary_ratio=0.8
    )
    return Member(pipe, {**videos.TEXT_CALL, "guidance_scale": 3.0})


def skyreels_v2_i2v() -> Member:
    """SkyReels-V2 I2V."""
    words, encoder = texts.t5(umt5=True)
    reader, eyes = texts.clip_vision(projection=True)
    transformer = videos.wan_transformer(SkyReelsV2Transformer3DModel, 4 * 2 + 4, image_dim=16)
    pipe = SkyReelsV2ImageToVideoPipeline(words, encoder, eyes, reader, transformer, decoders.wan(), videos.unipc(5.0))
    return Member(pipe, {**videos.TEXT_CALL, "guidance_scale": 3.0})


def ltx_i2v() -> Member:
    """LTX-Video I2V: tokens of the first frame are at time 0."""
    words, encoder = texts.t5()
    pipe = LTXImageToVideoPipeline(flow(), decoders.ltx(), encoder, words, videos.ltx_transformer())
    return Member(pipe, {**videos.TEXT_CALL, "num_frames": 9, "guidance_scale": 3.0})


def motif_i2v() -> Member:
    """Motif-Video I2V: the first frame in the channels of the input, and seen by the eyes of the text encoder."""
    words, encoder, reader = texts.t5_gemma2()
    transformer = MotifVideoTransformer3DModel(
        in_channels=4 * 2 + 1,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_decoder_layers=1,
        text_embed_dim=32,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    guider = ClassifierFreeGuidance(guidance_scale=3.0)
    pipe = MotifVideoImage2VideoPipeline(
        images.dynamic(), decoders.wan(), encoder, words, transformer, guider=guider, feature_extractor=reader
    )
    return Member(pipe, {**videos.TEXT_CALL, "negative_prompt": "blurry"})
