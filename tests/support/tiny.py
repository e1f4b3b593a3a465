"""Diffusers pipelines with random weights, built in code: two of the families users bring, in a fraction of a second.

Every letter is a token, so any English prompt works and nothing is fetched. The pictures are noise, but they depend on
prompt, seed and weights as in a real pipeline.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

PIXELS = 16
TOKENS = 24  # longest prompt, in letters
FLUX_CALL: dict[str, object] = {
    "height": PIXELS,
    "width": PIXELS,
    "num_inference_steps": 4,
    "max_sequence_length": TOKENS,
}
SD15_CALL: dict[str, object] = {"height": PIXELS, "width": PIXELS, "num_inference_steps": 4, "guidance_scale": 3.0}


def tiny_flux(seed: int = 0) -> FluxPipeline:
    """Return a FLUX pipeline with one double and one single block; call it with `FLUX_CALL`.

    Latents are 8 x 8 with 4 channels, packed into 16 tokens of 16 numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, text_encoder = _clip()
        tokenizer_2, text_encoder_2 = _t5()
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=False,
            axes_dims_rope=(4, 6, 6),
        )
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=_vae(shift_factor=0.0),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
        )
    return _quiet(pipe)


def tiny_sd15(seed: int = 0) -> StableDiffusionPipeline:
    """Return a Stable Diffusion 1.5 pipeline (a UNet that predicts noise, DDIM, guidance); call it with `SD15_CALL`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, text_encoder = _clip()
        unet = UNet2DConditionModel(
            sample_size=PIXELS // 2,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        pipe = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return _quiet(pipe)


def call_of(pipe: DiffusionPipeline) -> dict[str, object]:
    """Return the arguments that suit `pipe`'s size."""
    return dict(FLUX_CALL if isinstance(pipe, FluxPipeline) else SD15_CALL)


def picture(pipe: DiffusionPipeline, prompt: str = "a red circle", seed: int = 0) -> Tensor:
    """Return one picture of `pipe`, `[PIXELS, PIXELS, 3]` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.from_numpy(pipe(prompt, generator=generator, output_type="np", **call_of(pipe)).images[0])


def _clip() -> tuple[CLIPTokenizer, CLIPTextModel]:
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=TOKENS
    )
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=32,
    )
    return tokenizer, CLIPTextModel(config)


def _t5() -> tuple[T5Tokenizer, T5EncoderModel]:
    # A unigram model wants log-probabilities; the specials come first, in T5's own order.
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), *((letter, -8.0) for letter in letters)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return tokenizer, T5EncoderModel(config)


def _vae(shift_factor: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=PIXELS,
        shift_factor=shift_factor,
        scaling_factor=1.0,
    )


def _quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
