"""Loading a diffusers pipeline, and the few facts about it that are needed."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import ConfigError, EnvironmentProblem, PipelineError
from alignment.policy.networks.layout import Layout
from alignment.policy.networks.low_memory import decode_in_parts, offload, quantization
from alignment.policy.networks.single_file import denoiser_of_file
from alignment.policy.networks.spec import PolicySpec, not_a_pipeline
from reward_models.foreign import ForeignCode, first_line

DENOISERS = ("transformer", "unet")
"""Component names under which diffusers pipelines keep the network that denoises."""


def load_pipeline(spec: PolicySpec, device: torch.device, layout: Layout | None = None) -> Any:
    """Return the pipeline on `device`, frozen and in eval mode.

    Networks that will be spread, or rounded once they have adapters, stay where they are read.

    Raises:
        PipelineError: If the folder or hub id does not hold a loadable pipeline.
        ConfigError: If diffusers has no pipeline of the class asked for.
        EnvironmentProblem: If the attention backend is not installed.
    """
    kind = pipeline_class(spec.pipeline_class)
    _hush(spec)
    folder = Path(spec.pipeline)
    if folder.is_dir():
        _check_folder(folder)

    def unloadable(error: BaseException) -> PipelineError:
        return PipelineError(
            f"policy.pipeline: {spec.pipeline} could not be loaded: {_reason(error)}. "
            "A pipeline is a folder written by `save_pretrained`, or a hub id"
        )

    own = denoiser_of_file(spec, kind, DENOISERS)
    if own:  # the class that reads a folder's index takes such a network for no component where its class may lack one
        kind = declared_class(spec) or kind
    with ForeignCode(unloadable):
        with no_progress_bars():
            pipe = kind.from_pretrained(
                spec.pipeline,
                revision=spec.revision,
                dtype=getattr(torch, spec.dtype),
                local_files_only=folder.is_dir(),
                quantization_config=quantization(spec, DENOISERS, device),
                **own,
            )
        _check_weights(pipe)
        _check_taken(spec, pipe, own)
        if spec.offload:
            offload(pipe, loop_networks(pipe), device)
        waits = spec.quantize == "float8" or (layout is not None and layout.spread)
        _move(pipe, device, experts(pipe) if waits else ())
    own_scheduler(pipe)
    _check_tokenizers(pipe)
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
    decode_in_parts(pipe, spec.decode)
    _set_attention(pipe.components[denoiser_name(pipe)], spec.attention)
    return pipe


def _check_taken(spec: PolicySpec, pipe: Any, own: Mapping[str, Any]) -> None:
    """Refuse a pipeline that has another network than the one it was given."""
    if lost := next((name for name, network in own.items() if pipe.components[name] is not network), None):
        raise PipelineError(
            f"policy.single_file: {type(pipe).__name__} did not take the {lost} of {spec.single_file}; name its class "
            "(policy.pipeline_class), or give a pipeline folder"
        )


def _move(pipe: Any, device: torch.device, stay: Collection[str]) -> None:
    """Move the networks of `pipe` to `device`, but for those that stay."""
    if not stay:
        pipe.to(device)
    for name, network in pipe.components.items():
        if stay and name not in stay and isinstance(network, nn.Module):
            network.to(device)


def pipeline_class(name: str | None) -> Any:
    """Return the diffusers pipeline called `name`; for None, the class that reads a folder's index.

    Raises:
        ConfigError: If there is none.
    """
    import diffusers

    if name is None:
        return diffusers.DiffusionPipeline
    known = [other for other in dir(diffusers) if other.endswith("Pipeline")]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"policy.pipeline_class: diffusers has no pipeline called {name!r}{hint}")
    return getattr(diffusers, name)


def declared_class(spec: PolicySpec) -> Any | None:
    """Return the class of the pipeline, from its index alone; None where only loading it tells."""
    import diffusers

    try:
        described = diffusers.DiffusionPipeline.load_config(
            spec.pipeline, local_files_only=Path(spec.pipeline).is_dir()
        )
    except (OSError, ValueError):  # loading it says what is wrong
        return None
    name = str(spec.pipeline_class or (described.get("_class_name") if isinstance(described, dict) else None))
    return getattr(diffusers, name) if name in dir(diffusers) else None


def _check_folder(folder: Path) -> None:
    """Refuse a folder that lacks what its index lists."""
    if (reason := not_a_pipeline(folder)) is not None:
        raise PipelineError(f"policy.pipeline: {reason}")
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise PipelineError(f"policy.pipeline: {folder / 'model_index.json'} is not JSON: {error}") from error
    if not isinstance(index, dict):
        raise PipelineError(f"policy.pipeline: {folder / 'model_index.json'} is not a JSON object")
    there = [name for name, kind in components_listed(index).items() if kind is not None]
    lacking = [name for name in there if not (folder / name).is_dir() or not any((folder / name).iterdir())]
    if lacking:
        raise PipelineError(
            f"policy.pipeline: {folder} lacks the folder {' and '.join(lacking)} that its model_index.json lists; "
            "copy or save the pipeline again"
        )


def components_listed(index: Mapping[str, object]) -> dict[str, str | None]:
    """Return the class of each component in a pipeline's index; None for one that is not there.

    A component is a library and a class, both null for one that is left out. Settings of a pipeline may be lists, too.
    """
    return {
        name: kind[1]
        for name, kind in index.items()
        if isinstance(kind, list) and len(kind) == 2 and all(part is None or isinstance(part, str) for part in kind)
    }


def goes_from_time_to_time(kind: Any) -> bool:
    """Return whether schedulers of this class can be conducted: they set times, and step from each to the next."""
    stepped = inspect.signature(kind.step).parameters if hasattr(kind, "step") else {}
    return {"model_output", "timestep", "sample"} <= set(stepped) and hasattr(kind, "set_timesteps")


def own_scheduler(pipe: Any) -> Any:
    """Return the scheduler that a pipeline steps, and that is conducted in its place.

    Raises:
        PipelineError: If it has none, or one that is not stepped from time to time.
    """
    name, scheduler = type(pipe).__name__, pipe.components.get("scheduler")
    if scheduler is None:
        others = [part for part in sorted(pipe.components) if part.endswith("scheduler")]
        has = f"it has {', '.join(others)} instead, each" if others else "it denoises nothing, or"
        raise PipelineError(
            f"policy.pipeline: {name} has no component called scheduler, through which a pipeline is trained; {has} "
            "in a way of its own. Choose a pipeline with one scheduler"
        )
    kind = type(scheduler)
    if not goes_from_time_to_time(kind):
        raise PipelineError(
            f"policy.pipeline: {kind.__name__}, the scheduler of {name}, is not one that goes from time to time: "
            "set_timesteps, then step(model_output, timestep, sample). Choose a pipeline whose scheduler is"
        )
    return scheduler


def _check_weights(pipe: Any) -> None:
    """Refuse networks with weights that no file holds: libraries leave them empty or random.

    Raises:
        PipelineError: Naming the component and the first of the weights.
    """
    for name, network in pipe.components.items():
        made_up = _made_up(network) if isinstance(network, nn.Module) else []
        if made_up:
            more = f" and {len(made_up) - 3} more" if len(made_up) > 3 else ""
            raise PipelineError(
                f"policy.pipeline: the files of the {name} of {pipe.config._name_or_path} do not hold all of its "
                f"weights: {', '.join(made_up[:3])}{more} would be random numbers. They were renamed, or saved by "
                "another version of the library: copy or save the pipeline again"
            )


def _made_up(network: Any) -> list[str]:
    """Return the names of the weights that were not in the files that a network was loaded from."""
    empty = [key for key, weight in network.named_parameters() if _is_empty(weight)]
    if not isinstance(network, PreTrainedModel) or "quantization_config" in vars(network.config):
        return empty
    source = str(network.name_or_path)
    if not Path(source).is_dir():
        return empty
    # Transformers says it of a model that it is loading, and not to whoever loads a whole pipeline. So it is asked
    # once more, on a device without memory.
    with _transformers_quiet():
        loaded: Any = type(network).from_pretrained(
            source, device_map="meta", local_files_only=True, output_loading_info=True
        )
    return [*empty, *sorted(loaded[1]["missing_keys"])]


def _is_empty(weight: torch.Tensor) -> bool:
    """Whether a weight has no numbers; a rounded one is several tensors, whatever it says of its own device."""
    if not hasattr(type(weight), "__tensor_flatten__"):
        return weight.is_meta
    rounded: Any = weight
    inside, _ = rounded.__tensor_flatten__()
    parts = vars(rounded)
    return any(_is_empty(parts[name]) for name in inside if isinstance(parts.get(name), torch.Tensor))


@contextmanager
def _transformers_quiet() -> Iterator[None]:
    import transformers.utils.logging as log

    before = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(before)


def _check_tokenizers(pipe: Any) -> None:
    """Refuse a tokenizer without words: if its files are missing, transformers silently makes one."""
    for name, tokenizer in pipe.components.items():
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            continue
        words = len(tokenizer.get_vocab()) - len(tokenizer.all_special_ids)
        if words <= 1:  # a space, which T5 has from birth
            raise PipelineError(
                f"policy.pipeline: the {name} of {pipe.config._name_or_path} has no vocabulary: its files "
                "(tokenizer.json, or vocab and merges) are missing; copy or save the pipeline again"
            )


def denoiser_name(pipe: Any) -> str:
    """Return the name of the component that is trained.

    Raises:
        PipelineError: If the pipeline has none of the known names, and not just one network.
    """
    for name in DENOISERS:
        if isinstance(pipe.components.get(name), nn.Module):
            return name
    only = loop_networks(pipe)
    if len(only) == 1:
        return only[0]
    raise PipelineError(
        f"{type(pipe).__name__} has no component called {' or '.join(DENOISERS)}; "
        f"it has {', '.join(sorted(pipe.components))}"
    )


def experts(pipe: Any) -> dict[str, Any]:
    """Return the networks that are trained, by component name: the denoiser, and those that take over from it.

    Pipelines with two experts (one for noisy states, one for cleaner ones) keep them under the denoiser's name and a
    number, as networks of one class.
    """
    first = denoiser_name(pipe)
    cls = type(pipe.components[first])
    others = {k: m for k, m in pipe.components.items() if k.startswith(first + "_") and type(m) is cls}
    return {first: pipe.components[first], **others}


def loop_networks(pipe: Any) -> tuple[str, ...]:
    """Return the modules that may run in the denoising loop: diffusers' networks, but no autoencoder."""
    from diffusers import ModelMixin

    return tuple(
        name
        for name, module in pipe.components.items()
        if isinstance(module, ModelMixin) and not (hasattr(module, "encode") and hasattr(module, "decode"))
    )


def trained_scheduler(scheduler: Any) -> Any:
    """Return the scheduler that is conducted: the pipeline's own, or its first-order sibling at the same times.

    Schedulers that visit their times twice (Heun, DPM-2, PNDM's warm-up) have no step with a density; Heun's would
    silently give zero gradients. Evaluation keeps the pipeline's own.
    """
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

    if isinstance(scheduler, PNDMScheduler):
        return DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    if not hasattr(type(scheduler), "order") or type(scheduler).order == 1:
        return scheduler
    sibling = EulerDiscreteScheduler if "alphas_cumprod" in vars(scheduler) else FlowMatchEulerDiscreteScheduler
    return sibling.from_config(scheduler.config)


def _set_attention(denoiser: Any, backend: str) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = sorted(name.value for name in AttentionBackendName)
    if backend not in known:
        raise ConfigError(f"policy.attention: no backend is called {backend!r}; known: {', '.join(known)}")
    if backend == "native":
        return
    # Networks written before diffusers had backends, UNets among them, know one other way to compute attention.
    choosable = any(hasattr(module.processor, "_attention_backend") for module in attentions(denoiser))
    if not choosable and backend != "xformers":
        raise ConfigError(
            f"policy.attention: {type(denoiser).__name__} can only use native or xformers, not {backend!r}"
        )
    try:
        if choosable:
            denoiser.set_attention_backend(backend)
        else:
            denoiser.enable_xformers_memory_efficient_attention()
    except (RuntimeError, ImportError, ValueError) as error:
        raise EnvironmentProblem(
            f"policy.attention: backend {backend!r} cannot be used here: {_reason(error)}. 'native' always can"
        ) from error


def attentions(denoiser: nn.Module) -> list[Any]:
    """Return the modules of a network in which tokens attend to each other, as diffusers makes them."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    return [module for module in denoiser.modules() if isinstance(module, Attention | AttentionModuleMixin)]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Load without the progress bars of diffusers and transformers."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _hush(spec: PolicySpec) -> None:
    """Silence two warnings of libraries that no user can act on, and nothing else."""
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_is_worth_saying)
    if spec.autocast is not None:  # norms keep float32 weights under autocast; torch would rather fuse them
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight", category=UserWarning)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return "Attention backends are an experimental feature" not in record.getMessage()


def _reason(error: BaseException) -> str:
    """Return what went wrong in one line, without a full stop."""
    if "stacktrace above" in str(error) and error.__cause__ is not None:  # diffusers' words for an unreachable hub id
        return f"it is not on this machine, and the hub did not give it: {_reason(error.__cause__)}"
    return first_line(error)
