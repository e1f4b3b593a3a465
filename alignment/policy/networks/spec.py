"""Which pipeline is aligned, how it is called and what of it is trained: plain data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from alignment.errors import ConfigError, FieldError
from alignment.policy.networks.caches.base import FeatureCache

GGUF = ".gguf"
"""How files end whose weights are in fewer bits."""
RANK = 16
"""Of an adapter that nobody gave a rank."""
_HEAVIEST = 1e3
"""Weight of a frozen adapter, either way: people use up to some units; far more overflows in the network."""


@dataclass(frozen=True)
class Lora:
    """Train low-rank adapters, through PEFT.

    Attributes:
        rank: Rank of each update; null means 16, or the ranks of `start`.
        alpha: Scale of the update is alpha / rank; null means alpha = rank, or as in `start`.
        targets: Name endings of the modules to adapt; null means every linear layer inside the denoiser's blocks, or
            those that `start` adapts.
        merge: Fold the adapters into the weights while sampling: faster, for one more copy of the adapted weights in
            memory. Rollouts then differ from the pass with gradient by rounding.
        start: Adapter to go on training: a safetensors file or its folder (diffusers', PEFT's, kohya's or ComfyUI's
            names), or a hub id. It is then the reference, too.
        ranks: Other ranks, by the ending of the modules' names (a regular expression, as PEFT's rank_pattern).
        dora: Train the magnitude of each weight's rows apart from their direction (DoRA).
        rslora: Scale by alpha / sqrt(rank) (rank-stabilised LoRA).
        init: "gaussian" begins at the pipeline itself, by a zero in each update; "pissa" takes the largest singular
            values of each weight for its update and keeps the rest frozen, which is the pipeline itself, too.
    """

    rank: int | None = None
    alpha: int | None = None
    targets: tuple[str, ...] | None = None
    merge: bool = False
    start: str | None = None
    ranks: dict[str, int] = field(default_factory=dict)
    dora: bool = False
    rslora: bool = False
    init: Literal["gaussian", "pissa"] = "gaussian"

    def __post_init__(self) -> None:
        own = {name: value for name, value in vars(self).items() if name not in ("rank", "merge", "start")}
        given = [name for name, value in own.items() if value not in (None, False, {}, "gaussian")]
        if self.start is not None and given:
            raise FieldError(given[0], f"{self.start} brings its own {given[0]}; leave it out, or leave out start")
        if self.dora and self.merge:
            raise FieldError(
                "merge", "the rows of a DoRA weight are scaled, too, and are not folded in; set it to false"
            )
        if self.init == "pissa" and self.dora:
            raise FieldError("init", "pissa changes the weights whose magnitudes DoRA starts from; use one of the two")
        for pattern, rank in self.ranks.items():
            if rank < 1:
                raise FieldError(f"ranks.{pattern}", f"got {rank}, expected at least 1")
            try:
                re.compile(pattern)
            except re.error as error:
                raise FieldError(f"ranks.{pattern}", f"it is not a regular expression: {error}") from error

    @property
    def usual_rank(self) -> int:
        """Rank of each update whose rank nothing else says."""
        return RANK if self.rank is None else self.rank

    @property
    def starts_from_nothing(self) -> bool:
        """Whether switching the adapters off gives the weights that training begins at."""
        return self.start is None and self.init != "pissa"


@dataclass(frozen=True)
class FrozenAdapter:
    """An adapter that is not trained, folded into the weights under what is.

    Attributes:
        path: A safetensors file or its folder, or a hub id, as in `policy.lora.start`.
        weight: Times its own scale; not 0, and at most 1,000 either way.
        when: "sampling" has it in rollouts and evaluations only, not in the weights that are trained: for an adapter
            of few steps, under objectives that learn from clean samples or pairs.
    """

    path: str
    weight: float = 1.0
    when: Literal["always", "sampling"] = "always"

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight) or self.weight == 0:
            raise FieldError("weight", f"got {self.weight}, expected a finite number other than 0")
        if abs(self.weight) > _HEAVIEST:
            raise FieldError("weight", f"got {self.weight}, expected a number between -{_HEAVIEST:g} and {_HEAVIEST:g}")


@dataclass(frozen=True)
class PolicySpec:
    """Which pipeline is aligned, and how it is called and trained.

    Attributes:
        pipeline: Folder in diffusers layout, or a hub id.
        revision: Hub revision; null for the default branch.
        single_file: File of the denoiser's weights as its authors pass them on, .safetensors, or .gguf for training
            adapters; configuration and everything else are those of `pipeline`. Null: the weights, too.
        pipeline_class: Diffusers class to load it as, where one set of weights serves several, say
            WanImageToVideoPipeline; null for the one its model_index.json names.
        call: Arguments of the pipeline's own `__call__`, the same in rollout, replay and evaluation
            (height, width, num_inference_steps, guidance_scale, ...).
        fps: Frames per second of the clips it makes, for rewards that judge motion and for what is written; null takes
            `fps` or `frame_rate` of its call, or 10, as diffusers exports.
        lora: Adapters to train; null trains the denoiser's own weights.
        adapters: Frozen adapters, folded into the denoiser in this order before anything else: they are present in
            rollouts, replays and evaluations, in the reference, and in what is exported as a whole pipeline.
        trainable: With full fine-tuning: patterns (regular expressions) of parameter names to train; null means all.
        dtype: Storage of the frozen weights. Trained weights are always float32.
        autocast: Compute precision of denoiser and decoder, the same in rollout and in the pass with gradient
            (otherwise the first ratio is not 1); null computes in `dtype`. With float16, losses are scaled so that
            gradients do not vanish; networks and decoders whose numbers exceed 65504 need bfloat16.
        attention: Attention backend, a name of diffusers' `set_attention_backend`.
        gradient_checkpointing: Recompute the activations of each block in the backward pass; "selective": but for
            attention and convolutions, and without `lora` products of matrices: they take more to make than to keep.
        cache: Let rollouts of clean samples use what the denoiser computed in earlier steps (docs/faster.md); never in
            replays, updates and evaluations. Null runs all of it in every step.
        compile: Compile the denoiser: true, as one; "blocks", each kind of its blocks once, for any shape, which takes
            far less time to compile (docs/faster.md).
        embedding_cache: Folder of cached prompt embeddings; null keeps them in memory only.
        quantize: Storage of the frozen denoiser in fewer bits, for training adapters: "8bit" (torchao, any device),
            "4bit" (NF4 of bitsandbytes, CUDA), or "float8" (E4M3, by diffusers' layerwise casting, any device; it needs
            no package and rounds more than 8bit).
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
    single_file: str | None = None
    pipeline_class: str | None = None
    call: dict[str, object] = field(default_factory=dict)
    fps: float | None = None
    lora: Lora | None = None
    adapters: tuple[FrozenAdapter, ...] = ()
    trainable: tuple[str, ...] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    autocast: Literal["bfloat16", "float16"] | None = None
    attention: str = "native"
    gradient_checkpointing: bool | Literal["selective"] = False
    cache: FeatureCache | None = None
    compile: bool | Literal["blocks"] = False
    embedding_cache: str | None = None
    quantize: Literal["8bit", "4bit", "float8"] | None = None
    offload: bool = False
    decode: Literal["whole", "sliced", "tiled"] = "whole"
    check_latents: bool = True
    trajectories: Literal["device", "cpu"] = "device"

    def __post_init__(self) -> None:
        if self.quantize is not None and self.rounded_file:
            raise FieldError("quantize", f"{self.single_file} is in fewer bits already; leave quantize out")
        problem = self.cannot_round()
        if self.quantize is not None and problem is not None:
            raise ConfigError(f"policy.quantize: {self.quantize} keeps the denoiser's weights rounded: {problem}")
        if self.rounded_file and problem is not None:
            raise FieldError("single_file", f"{self.single_file} holds rounded weights: {problem}")

    @property
    def precision(self) -> torch.dtype | None:
        """In which autocast computes; None where there is none."""
        return None if self.autocast is None else getattr(torch, self.autocast)

    @property
    def rounded_file(self) -> bool:
        """Whether the denoiser comes from a file in fewer bits."""
        return self.single_file is not None and self.single_file.endswith(GGUF)

    def cannot_round(self) -> str | None:
        """Return why the denoiser's weights cannot be in fewer bits, and what to do; None where they can."""
        if self.lora is None:
            return "rounded weights cannot be trained; train adapters (policy.lora: {})"
        if self.lora.merge:
            return "adapters cannot be folded into them; set policy.lora.merge: false"
        if self.adapters:
            return "policy.adapters cannot be folded into them; export a merged pipeline first, and train on that"
        if self.lora.dora and (self.rounded_file or self.quantize == "float8"):
            return "DoRA measures them at every call; set policy.lora.dora: false, or use 8bit"
        return "pissa takes a part out of them; use init: gaussian" if self.lora.init == "pissa" else None

    @property
    def trains(self) -> str:
        """What is trained of what, in words."""
        what = "the denoiser's own weights"
        if self.lora is not None:
            new = f"LoRA adapters of rank {self.lora.usual_rank}"
            what = new if self.lora.start is None else f"the LoRA adapters {self.lora.start}"
        return f"{what} of {self.pipeline}" + "".join(f" and {one.weight} x {one.path}" for one in self.adapters)


def not_a_pipeline(folder: Path) -> str | None:
    """Return why a folder is not one that diffusers saved a pipeline in; None if it is."""
    if (folder / "model_index.json").is_file():
        return None
    if (folder / "modular_model_index.json").is_file():
        return (
            f"{folder} holds a modular pipeline (modular_model_index.json), which is not trained here; expected a "
            "folder with a model_index.json, which a pipeline's save_pretrained writes"
        )
    return f"the folder {folder} holds no model_index.json: it is not a diffusers pipeline"
