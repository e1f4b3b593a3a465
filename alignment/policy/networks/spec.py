"""Which pipeline is aligned, how it is called and what of it is trained: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from alignment.errors import ConfigError


@dataclass(frozen=True)
class Lora:
    """Train low-rank adapters, through PEFT.

    Attributes:
        rank: Rank of each update.
        alpha: Scale of the update is alpha / rank; null means alpha = rank.
        targets: Name endings of the modules to adapt; null means every linear layer inside the denoiser's blocks.
        merge: Fold the adapters into the weights while sampling: faster, for one more copy of the adapted weights in
            memory. Rollouts then differ from the pass with gradient by rounding.
    """

    rank: int = 16
    alpha: int | None = None
    targets: tuple[str, ...] | None = None
    merge: bool = False


@dataclass(frozen=True)
class PolicySpec:
    """Which pipeline is aligned, and how it is called and trained.

    Attributes:
        pipeline: Folder in diffusers layout, or a hub id.
        revision: Hub revision; null for the default branch.
        pipeline_class: Diffusers class to load it as, where one set of weights serves several, say
            WanImageToVideoPipeline; null for the one its model_index.json names.
        call: Arguments of the pipeline's own `__call__`, the same in rollout, replay and evaluation
            (height, width, num_inference_steps, guidance_scale, ...).
        fps: Frames a second of the clips it makes, for rewards that judge motion and for what is written; null takes
            `fps` or `frame_rate` of its call, or 10, as diffusers exports.
        lora: Adapters to train; null trains the denoiser's own weights.
        trainable: With full fine-tuning: patterns (regular expressions) of parameter names to train; null means all.
        dtype: Storage of the frozen weights. Trained weights are always float32.
        autocast: Compute precision of denoiser and decoder, the same in rollout and in the pass with gradient
            (otherwise the first ratio is not 1); null computes in `dtype`.
        attention: Attention backend, a name of diffusers' `set_attention_backend`.
        gradient_checkpointing: Recompute activations in the backward pass.
        compile: Compile the denoiser.
        embedding_cache: Folder of cached prompt embeddings; null keeps them in memory only.
        quantize: Storage of the frozen denoiser in fewer bits, for training adapters: "8bit" (torchao, any device) or
            "4bit" (NF4 of bitsandbytes, CUDA).
        offload: Keep text encoders, image encoders and the VAE in main memory; their layers visit the device one by
            one while they run.
        decode: Pixels of all rows at once, row by row ("sliced"), or in overlapping tiles of each row ("tiled", whose
            seams differ slightly).
        check_latents: Whether a sample to learn from has to come back through the pipeline's own decoder. False is for
            VAEs with random weights, to try things out: with others it hides latents that are wrong.
        trajectories: Where recorded states wait for the update; on the "cpu" they leave the device's memory to the
            next pipeline call.
    """

    pipeline: str
    revision: str | None = None
    pipeline_class: str | None = None
    call: dict[str, object] = field(default_factory=dict)
    fps: float | None = None
    lora: Lora | None = None
    trainable: tuple[str, ...] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    autocast: Literal["bfloat16"] | None = None
    attention: str = "native"
    gradient_checkpointing: bool = False
    compile: bool = False
    embedding_cache: str | None = None
    quantize: Literal["8bit", "4bit"] | None = None
    offload: bool = False
    decode: Literal["whole", "sliced", "tiled"] = "whole"
    check_latents: bool = True
    trajectories: Literal["device", "cpu"] = "device"

    def __post_init__(self) -> None:
        if self.quantize is not None and (self.lora is None or self.lora.merge):
            what = "rounded weights cannot be trained" if self.lora is None else "adapters cannot be folded into them"
            do = "train adapters (policy.lora: {})" if self.lora is None else "set policy.lora.merge: false"
            raise ConfigError(f"policy.quantize: {self.quantize} keeps the denoiser's weights rounded: {what}; {do}")
