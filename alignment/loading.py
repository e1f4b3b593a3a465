"""Loading a diffusers pipeline, and the few things that must be asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from alignment.errors import ConfigError, EnvironmentProblem, PipelineError
from alignment.spec import PolicySpec

DENOISERS = ("transformer", "unet")
"""Component names under which diffusers pipelines keep the network that denoises."""

_OUTSIDE_THE_LOOP = ("text_encoder", "image_encoder", "vae", "safety_checker", "tokenizer")


def load_pipeline(spec: PolicySpec, device: torch.device) -> Any:
    """Return the pipeline on `device`, frozen and in eval mode.

    Raises:
        PipelineError: If the folder or hub id does not hold a loadable pipeline.
        EnvironmentProblem: If the attention backend is not installed.
    """
    from diffusers import DiffusionPipeline

    folder = Path(spec.pipeline)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise PipelineError(f"policy.pipeline: {folder} has no model_index.json: it is not a diffusers pipeline folder")
    try:
        pipe = DiffusionPipeline.from_pretrained(
            spec.pipeline, revision=spec.revision, dtype=getattr(torch, spec.dtype), local_files_only=folder.is_dir()
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        raise PipelineError(
            f"policy.pipeline: {spec.pipeline} could not be loaded: {_first_line(error)}. "
            "A pipeline is a folder written by `save_pretrained`, or a hub id"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
    pipe.to(device)
    _set_attention(pipe, spec.attention)
    return pipe


def denoiser_name(pipe: Any) -> str:
    """Return the name of the component that is trained.

    Raises:
        PipelineError: If the pipeline has none of the known names.
    """
    for name in DENOISERS:
        if isinstance(pipe.components.get(name), nn.Module):
            return name
    raise PipelineError(
        f"{type(pipe).__name__} has no component called {' or '.join(DENOISERS)}; it has {', '.join(sorted(pipe.components))}"
    )


def loop_networks(pipe: Any) -> tuple[str, ...]:
    """Return the modules that may run in the denoising loop: all but encoders, decoders and checkers."""
    return tuple(
        name
        for name, module in pipe.components.items()
        if isinstance(module, nn.Module) and not name.startswith(_OUTSIDE_THE_LOOP)
    )


def trained_scheduler(scheduler: Any) -> Any:
    """Return the scheduler whose transitions are trained: the pipeline's own, or its first-order sibling.

    Higher-order schedulers have no density of one step (and Heun's gives zero gradients without a word), so transitions
    use Euler on flows and DDIM on the DDPM family, on the same noise schedule. Evaluation keeps the pipeline's own.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler | DDIMScheduler):
        return scheduler
    if "alphas_cumprod" in vars(scheduler) and not scheduler.config.get("use_flow_sigmas"):
        return DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    raise PipelineError(
        f"{type(scheduler).__name__} has no first-order sibling that is known here; "
        "load the pipeline with FlowMatchEulerDiscreteScheduler or DDIMScheduler"
    )


def _set_attention(pipe: Any, backend: str) -> None:
    denoiser = pipe.components[denoiser_name(pipe)]
    if backend == "native":
        return
    try:
        denoiser.set_attention_backend(backend)
    except ValueError as error:
        raise ConfigError(f"policy.attention: {_first_line(error)}") from error
    except (RuntimeError, ImportError) as error:
        raise EnvironmentProblem(
            f"policy.attention: backend {backend!r} cannot be used here: {_first_line(error)}; 'native' always can"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
