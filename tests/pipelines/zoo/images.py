"""Text-to-image pipelines."""

from __future__ import annotations

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests.pipelines.zoo import decoders, texts
from tests.pipelines.zoo.member import Member, flow

CALL: dict[str, object] = {"height": 16, "width": 16, "num_inference_steps": 4}
TEXT_CALL = {**CALL, "max_sequence_length": texts.TOKENS}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def unet(channels: int = 4) -> UNet2DConditionModel:
    """Return Stable Diffusion 1.5's UNet."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def stable_diffusion() -> Member:
    """Stable Diffusion 1.5: a UNet that predicts noise."""
    words, encoder = texts.clip()
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        decoders.kl(), encoder, words, unet(), scheduler, None, None, requires_safety_checker=False
    )
    return Member(pipe, {**CALL, "guidance_scale": 3.0})


def stable_diffusion_xl() -> Member:
    """Stable Diffusion XL: two text encoders, sizes as a condition."""
    (words, encoder), (words_2, encoder_2) = texts.clip(), texts.clip(projection=True)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    pipe = StableDiffusionXLPipeline(
        decoders.kl(), encoder, encoder_2, words, words_2, unet, EulerDiscreteScheduler(**BETAS, steps_offset=1)
    )
    return Member(pipe, {**CALL, "guidance_scale": 3.0})


def stable_diffusion_3() -> Member:
    """Stable Diffusion 3.5: three text encoders, two streams."""
    (words, encoder), (words_2, encoder_2) = texts.clip(projection=True), texts.clip(projection=True)
    words_3, encoder_3 = texts.t5(width=64)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    pipe = StableDiffusion3Pipeline(
        transformer, flow(3.0), decoders.kl(shift=0.0), encoder, words, encoder_2, words_2, encoder_3, words_3
    )
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def flux_transformer(channels: int = 16, *, guidance: bool = True, out: int | None = None) -> FluxTransformer2DModel:
    """Return FLUX.1's transformer, a block of each kind."""
    return FluxTransformer2DModel(
        in_channels=channels,
        out_channels=out,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )


def dynamic() -> FlowMatchEulerDiscreteScheduler:
    """Return the scheduler of FLUX and Qwen-Image, whose shift follows the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def flux() -> Member:
    """FLUX.1-dev: packed tokens, embedded guidance."""
    (words, encoder), (words_2, encoder_2) = texts.clip(), texts.t5()
    pipe = FluxPipeline(dynamic(), decoders.kl(shift=0.0), encoder, words, encoder_2, words_2, flux_transformer())
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.5})


def flux2_transformer() -> Flux2Transformer2DModel:
    """Return FLUX.2's transformer, a block of each kind."""
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )


def flux2_klein() -> Member:
    """FLUX.2 klein: text from three layers of a language model."""
    words, encoder = texts.qwen3(4, head=True)
    pipe = Flux2KleinPipeline(dynamic(), decoders.flux2(), encoder, words, flux2_transformer())
    layers = {"max_sequence_length": 24, "text_encoder_out_layers": (1, 2, 3)}
    return Member(pipe, {**CALL, **layers, "image": None, "guidance_scale": 3.0})


def qwen_transformer() -> QwenImageTransformer2DModel:
    """Return Qwen-Image's transformer."""
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )


def qwen_image() -> Member:
    """Qwen-Image: text of any length, guidance that keeps the norm."""
    words, encoder = texts.qwen25_vl()
    pipe = QwenImagePipeline(dynamic(), decoders.qwen(), encoder, words, qwen_transformer())
    return Member(pipe, {**CALL, "height": 32, "width": 32, "true_cfg_scale": 3.0, "negative_prompt": "blurry"})


def z_image() -> Member:
    """Z-Image: lists of latents, one time for all of them."""
    words, encoder = texts.qwen3()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    pipe = ZImagePipeline(flow(3.0), decoders.kl(shift=0.0), encoder, words, transformer)
    return Member(pipe, {**CALL, "max_sequence_length": 48, "guidance_scale": 3.0})


SANA_CALL = {
    **TEXT_CALL,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
    "height": 32,
    "width": 32,
}


def sana_transformer(**more: object) -> SanaTransformer2DModel:
    """Return Sana's transformer."""
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        **more,
    )


def sana() -> Member:
    """Sana: linear attention, a multistep solver."""
    words, encoder = texts.gemma2()
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = SanaPipeline(words, encoder, decoders.dc(), sana_transformer(), scheduler)
    return Member(pipe, {**SANA_CALL, "guidance_scale": 3.0})


def sana_sprint() -> Member:
    """SANA-Sprint: TrigFlow, noise of its scheduler's own."""
    words, encoder = texts.gemma2()
    transformer = sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    pipe = SanaSprintPipeline(words, encoder, decoders.dc(), transformer, SCMScheduler())
    return Member(pipe, {**SANA_CALL, "intermediate_timesteps": None})


def pixart_sigma() -> Member:
    """PixArt-Sigma: noise prediction with a learned variance that nobody reads."""
    words, encoder = texts.t5()
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        cross_attention_dim=16,
        norm_type="ada_norm_single",
    )
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    pipe = PixArtSigmaPipeline(words, encoder, decoders.kl(), transformer, scheduler)
    plain = {"use_resolution_binning": False, "clean_caption": False}
    cannot = {"lora_in_diffusers": "diffusers has no adapters for PixArtTransformer2DModel"}
    return Member(pipe, {**TEXT_CALL, **plain, "guidance_scale": 3.0}, cannot)


def lumina2() -> Member:
    """Lumina-Image 2.0: times that run from 0 to 1."""
    words, encoder = texts.gemma2()
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(64, 32, 32),
        cap_feat_dim=16,
    )
    pipe = Lumina2Pipeline(transformer, flow(6.0), decoders.kl(shift=0.0, levels=4), encoder, words)
    return Member(pipe, {**TEXT_CALL, "height": 32, "width": 32, "max_sequence_length": 32, "guidance_scale": 3.0})


def chroma() -> Member:
    """Chroma: FLUX.1 with modulation made by a network of its own."""
    words, encoder = texts.t5()
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    pipe = ChromaPipeline(flow(), decoders.kl(shift=0.0), encoder, words, transformer)
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def aura_flow() -> Member:
    """AuraFlow: no position arguments, one time a call."""
    words, encoder = texts.t5(umt5=True)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=64,
    )
    pipe = AuraFlowPipeline(words, encoder, decoders.kl(), transformer, flow(1.73))
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def cogview4() -> Member:
    """CogView4: a linear dynamic shift, sizes as a condition."""
    words, encoder = texts.glm()
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    pipe = CogView4Pipeline(words, encoder, decoders.kl(), transformer, scheduler)
    return Member(pipe, {**TEXT_CALL, "guidance_scale": 3.0})


def krea2() -> Member:
    """Krea 2: text from several layers of a language model, which its index lists among the components."""
    words, encoder = texts.qwen3_vl()
    text = {"text_hidden_dim": 16, "num_text_layers": 2, "text_intermediate_size": 32}
    heads = {"text_num_attention_heads": 2, "text_num_key_value_heads": 2}
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
        **text,
        **heads,
    )
    pipe = Krea2Pipeline(dynamic(), decoders.qwen(), encoder, words, transformer, text_encoder_select_layers=(1, 2))
    return Member(pipe, {**CALL, "height": 32, "width": 32, "max_sequence_length": 24, "guidance_scale": 3.0})
