"""Text-to-video pipelines."""

from __future__ import annotations

from diffusers import (
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance

from tests.pipelines.zoo import decoders, texts
from tests.pipelines.zoo.member import Member, flow, pad_to

CALL: dict[str, object] = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4}
TEXT_CALL = {**CALL, "max_sequence_length": texts.TOKENS}
CLIP_TOKENS = 77
"""HunyuanVideo pads to this, whatever the tokenizer says."""
SYSTEM_TOKENS = 108
"""HunyuanVideo 1.5 cuts this many off."""
TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>the picture moves<|eot_id|><|start_header_id|>user<|end_header_id|>{}"
)


def template(words: object) -> dict[str, object]:
    """Return a short prompt template of HunyuanVideo and how many of its tokens are cut off again."""
    return {"template": TEMPLATE, "crop_start": len(words(TEMPLATE.split("{}")[0]).input_ids)}


def hunyuan_transformer(channels: int = 4, *, guidance: bool = True, condition: str | None = None) -> object:
    """Return HunyuanVideo's transformer, a block of each kind."""
    return HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=guidance,
        image_condition_type=condition,
    )


def hunyuan_video() -> Member:
    """HunyuanVideo: shift 7, embedded guidance."""
    (words, encoder), (words_2, encoder_2) = texts.llama(), texts.clip(longest=CLIP_TOKENS)
    pipe = HunyuanVideoPipeline(
        encoder, words, hunyuan_transformer(), decoders.hunyuan(), flow(7.0), encoder_2, words_2
    )
    return Member(pipe, {**TEXT_CALL, "prompt_template": template(words)})


def hunyuan15_transformer(task: str) -> HunyuanVideo15Transformer3DModel:
    """Return HunyuanVideo 1.5's transformer."""
    return HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=32,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type=task,
    )


def hunyuan_video_1_5() -> Member:
    """HunyuanVideo 1.5: guidance by a component."""
    pad_to(HunyuanVideo15Pipeline, 120, 16)  # a hundred are its own
    (words, encoder), (words_2, encoder_2) = texts.qwen25_vl_text(SYSTEM_TOKENS), texts.byt5()
    pipe = HunyuanVideo15Pipeline(
        encoder,
        words,
        hunyuan15_transformer("t2v"),
        decoders.hunyuan15(),
        flow(7.0),
        encoder_2,
        words_2,
        ClassifierFreeGuidance(guidance_scale=3.0),
    )
    return Member(pipe, {**CALL, "height": 16, "width": 16, "num_inference_steps": 3})


def wan_transformer(kind: type = WanTransformer3DModel, channels: int = 4, **more: object) -> object:
    """Return the transformer of Wan and its kin."""
    return kind(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=64,
        **more,
    )


def unipc(shift: float) -> UniPCMultistepScheduler:
    """Return the solver that Wan and SkyReels-V2 ship with."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan() -> Member:
    """Wan 2.1: a multistep solver on flow sigmas."""
    words, encoder = texts.t5(umt5=True)
    pipe = WanPipeline(words, encoder, decoders.wan(), unipc(3.0), wan_transformer())
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def wan_2_2() -> Member:
    """Wan 2.2: one expert for noise, one for detail; the expert for noise is trained."""
    words, encoder = texts.t5(umt5=True)
    pipe = WanPipeline(
        words, encoder, decoders.wan(), unipc(3.0), wan_transformer(), wan_transformer(), boundary_ratio=0.8
    )
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def any_flow() -> Member:
    """AnyFlow: a network that is told where a step arrives, too; a step that goes nowhere is left out."""
    words, encoder = texts.t5(umt5=True)
    transformer = wan_transformer(AnyFlowTransformer3DModel)
    pipe = AnyFlowPipeline(words, encoder, transformer, decoders.wan(), FlowMapEulerDiscreteScheduler(shift=3.0))
    return Member(pipe, TEXT_CALL)


def wan_vace() -> Member:
    """Wan VACE: Wan with side blocks that read a control video."""
    words, encoder = texts.t5(umt5=True)
    transformer = wan_transformer(WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=2 * 4 + 8 * 8)
    pipe = WanVACEPipeline(words, encoder, decoders.wan(), unipc(3.0), transformer)
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def skyreels_v2() -> Member:
    """SkyReels-V2: Wan with shift 8."""
    words, encoder = texts.t5(umt5=True)
    transformer = wan_transformer(SkyReelsV2Transformer3DModel)
    pipe = SkyReelsV2Pipeline(words, encoder, transformer, decoders.wan(), unipc(8.0))
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def skyreels_v2_forcing() -> Member:
    """SkyReels-V2 diffusion forcing: every latent frame has its own time and its own copy of the scheduler."""
    words, encoder = texts.t5(umt5=True)
    transformer = wan_transformer(SkyReelsV2Transformer3DModel)
    pipe = SkyReelsV2DiffusionForcingPipeline(words, encoder, transformer, decoders.wan(), unipc(8.0))
    one_after_the_other = "denoises its streams one after the other in this call"
    cannot = {"nft_step": one_after_the_other, "dpo_step": one_after_the_other}
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0, "ar_step": 2, "causal_block_size": 1}, cannot)


def ltx_transformer() -> LTXVideoTransformer3DModel:
    """Return LTX-Video's transformer."""
    return LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )


def ltx_video() -> Member:
    """LTX-Video: packed tokens."""
    words, encoder = texts.t5()
    pipe = LTXPipeline(flow(), decoders.ltx(), encoder, words, ltx_transformer())
    return Member(pipe, {**TEXT_CALL, "num_frames": 9, "guidance_scale": 3.0})


def cogvideox() -> Member:
    """CogVideoX: v-prediction, latents with frames before channels."""
    words, encoder = texts.t5()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=texts.TOKENS,
    )
    scheduler = CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    pipe = CogVideoXPipeline(words, encoder, decoders.cogvideox(), transformer, scheduler)
    return Member(pipe, {**TEXT_CALL, "height": 16, "width": 16, "num_frames": 9, "guidance_scale": 3.0})


def mochi() -> Member:
    """Mochi: times that run from 0 to 1, sigmas of its own."""
    words, encoder = texts.t5()
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=texts.TOKENS,
    )
    pipe = MochiPipeline(flow(), decoders.mochi(), encoder, words, transformer)
    return Member(pipe, {**TEXT_CALL, "height": 16, "width": 16, "num_frames": 7, "guidance_scale": 3.0})
