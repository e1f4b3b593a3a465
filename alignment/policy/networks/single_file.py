"""A denoiser from one file, as authors and users of other programs pass them on; the rest comes from the pipeline."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES, FromOriginalModelMixin
from safetensors import SafetensorError, safe_open

from alignment.errors import ConfigError, EnvironmentProblem, PipelineError
from alignment.policy.networks.adapter_kinds import Adapter
from alignment.policy.networks.spec import GGUF, PolicySpec
from reward_models.foreign import ForeignCode, first_line

_SAFE = (".safetensors", GGUF)
_MAGIC = b"GGUF"
_BESIDE = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.", "model_ema.")
"""How names of other networks begin, in files of whole models."""
_NAMED = 3
"""Tensors that a message names."""


def misfiled(spec: PolicySpec) -> str | None:
    """Return what is wrong with where `policy.single_file` is; None where nothing is."""
    if spec.single_file is None:
        return None
    path = Path(spec.single_file)
    if not spec.single_file:
        return "the name is empty"
    if path.suffix not in _SAFE and path.suffix.lower() in _SAFE:
        return (
            f"{path.name} ends in {path.suffix}, by which diffusers knows no file; rename it to {path.suffix.lower()}"
        )
    if path.suffix not in _SAFE:
        return f"{path.name} is no .safetensors or {GGUF} file; others are pickles, which can run code when opened"
    return None if path.is_file() else f"there is no file {spec.single_file}"


def denoiser_of_file(spec: PolicySpec, kind: Any, networks: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the denoiser of `policy.single_file` by its component name; nothing where there is no such file.

    Args:
        spec: The policy; its pipeline has the denoiser's configuration.
        kind: Class of the pipeline.
        networks: Component names that a denoiser may have.

    Raises:
        ConfigError: If the file cannot be that of this pipeline's denoiser.
        PipelineError: If diffusers cannot read it as that.
        EnvironmentProblem: If the package that reads it is missing.
    """
    if spec.single_file is None:
        return {}
    if problem := misfiled(spec):
        raise ConfigError(f"policy.single_file: {problem}")
    local = Path(spec.pipeline).is_dir()
    index = cast(Mapping[str, Any], kind.load_config(spec.pipeline, revision=spec.revision, local_files_only=local))
    name, cls = _declared(index, networks)
    if cls is None or not issubclass(cls, FromOriginalModelMixin) or cls.__name__ not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ConfigError(
            f"policy.single_file: diffusers reads no single file into the {name} of {spec.pipeline}; leave it out, and "
            "give a pipeline folder"
        )
    if twin := next((other for other in index if other.startswith(f"{name}_") and index[other] == index[name]), None):
        raise ConfigError(
            f"policy.single_file: {spec.pipeline} has two networks, {name} and {twin}, and there is one file"
        )

    quantization = _gguf(spec)
    shapes = _looked_into(spec.single_file)

    def unreadable(error: BaseException) -> PipelineError:
        reason = first_line(error)
        return PipelineError(
            f"policy.single_file: {spec.single_file} could not be read as a {cls.__name__}: {reason}. It holds "
            f"{len(shapes)} tensors: {', '.join([*shapes][:_NAMED])}, ..."
        )

    _check_tensors(spec, name, cls, shapes, local=local)
    with ForeignCode(unreadable):
        network = cls.from_single_file(
            spec.single_file,
            config=spec.pipeline,
            subfolder=name,
            config_revision=spec.revision,
            torch_dtype=getattr(torch, spec.dtype),
            quantization_config=quantization,
            local_files_only=local,
        )
    return {name: network}


def _check_tensors(spec: PolicySpec, name: str, cls: Any, shapes: Mapping[str, Sequence[int]], *, local: bool) -> None:
    """Refuse a file that lacks tensors of the network, or has some that the network has no place for.

    diffusers leaves such out without a word. Files of whole models may have other networks beside this one.

    Raises:
        ConfigError: Naming the first.
    """
    with torch.device("meta"):
        tensors = {key: torch.empty(tuple(shape)) for key, shape in shapes.items()}
        config = cls.load_config(spec.pipeline, subfolder=name, revision=spec.revision, local_files_only=local)
        shaped = cls.from_config(config).state_dict()
        wanted = shaped.keys()
        if not wanted <= tensors.keys():
            convert: Any = SINGLE_FILE_LOADABLE_CLASSES[cls.__name__]["checkpoint_mapping_fn"]
            try:
                with ForeignCode(lambda error: PipelineError(str(error))):
                    tensors = convert(checkpoint=dict(tensors), config=dict(config))
            except PipelineError:
                if 2 * len(wanted & tensors.keys()) < len(wanted):
                    return  # nobody's names: it is read, and refused, as a whole
    found = {key for key, tensor in tensors.items() if tensor is not None and not key.startswith(_BESIDE)}
    if odd := next((key for key in sorted(wanted & found) if tensors[key].shape != shaped[key].shape), None):
        raise ConfigError(
            f"policy.single_file: {spec.single_file} has {odd} of shape {list(tensors[odd].shape)}, where the "
            f"{cls.__name__} of {spec.pipeline} has {list(shaped[odd].shape)}: it is of a network of another size"
        )
    for what, keys in (("lacks", wanted - found), ("holds", found - wanted)):
        if keys:
            first = min(keys)
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            why = "which the network needs" if what == "lacks" else "for which the network has no place"
            raise ConfigError(
                f"policy.single_file: {spec.single_file} {what} {first}{more}, {why}: it is of another {cls.__name__} "
                f"than that of {spec.pipeline}"
            )


def _looked_into(file: str) -> Mapping[str, Sequence[int]]:
    """Return the shapes of a file's tensors by name.

    Raises:
        ConfigError: If it is not what its name says, is not whole, or holds an adapter.
    """
    if file.endswith(GGUF):
        shapes = _shapes_of_gguf(file)
    else:
        try:
            with safe_open(file, framework="pt") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
                shapes = {name: part.get_shape() for name, part in slices.items()}
                kinds = {name: str(part.get_dtype()) for name, part in slices.items() if name.endswith("weight")}
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"policy.single_file: {file} is not a whole safetensors file: {str(error).rstrip('. ')}"
            ) from error
        if whole := next((name for name, kind in kinds.items() if "F" not in kind), None):
            raise ConfigError(
                f"policy.single_file: {file}: {whole} is of {kinds[whole]}, and weights are no whole numbers"
            )
    if adapter := next((name for name in shapes if "lora" in name.lower()), None):
        raise ConfigError(
            f"policy.single_file: {file} holds an adapter ({adapter}) and no network; policy.lora.start trains it on, "
            "and policy.adapters has it lie under what is trained"
        )
    if not shapes:
        raise ConfigError(f"policy.single_file: {file} holds no tensor")
    return shapes


def _shapes_of_gguf(file: str) -> Mapping[str, Sequence[int]]:
    with Path(file).open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ConfigError(f"policy.single_file: {file} is no GGUF file: it does not begin with {_MAGIC.decode()}")

    def unreadable(error: BaseException) -> ConfigError:
        reason = first_line(error)
        return ConfigError(f"policy.single_file: {file} is not a whole GGUF file: {reason}")

    from gguf import GGUFReader

    with ForeignCode(unreadable):
        # The file has the sides of a tensor from the last to the first.
        return {tensor.name: [int(side) for side in reversed(tensor.shape)] for tensor in GGUFReader(file).tensors}


def _declared(index: Mapping[str, Any], networks: tuple[str, ...]) -> tuple[str, Any]:
    """Return the name of the denoiser in a pipeline's index, and its class; None where diffusers has none."""
    import diffusers

    found = {name: index[name] for name in networks if isinstance(index.get(name), list | tuple)}
    name, (_, kind) = next(iter(found.items()), (networks[0], ("", "")))
    return name, getattr(diffusers, kind) if kind in dir(diffusers) else None


def _gguf(spec: PolicySpec) -> Any:
    """Return how diffusers keeps the numbers of a GGUF file; None of other files."""
    if not spec.rounded_file:
        return None
    if importlib.util.find_spec("gguf") is None:
        raise EnvironmentProblem(
            f"policy.single_file: {spec.single_file} is read by gguf, which is not installed; run `pip install gguf`"
        )
    from diffusers import GGUFQuantizationConfig

    return GGUFQuantizationConfig(compute_dtype=spec.precision or getattr(torch, spec.dtype))


def check_start(spec: PolicySpec, networks: Mapping[str, Any], start: Mapping[str, Adapter]) -> None:
    """Refuse an adapter of a kind that cannot go on being trained as `spec` says.

    That is one that makes an update as large as the weight it is for, where that is stored in another shape; and a
    DoRA where weights are folded in or rounded.

    Raises:
        ConfigError: Saying what can be done.
    """
    rounded = list(networks) if spec.rounded_file else _rounded(networks)
    for name, adapter in start.items():
        if name in rounded and adapter.kind in ("LoHa", "LoKr"):
            raise ConfigError(
                f"{adapter.origin} is a {adapter.kind}, which PEFT does not add to weights in fewer bits; "
                "train it on the pipeline that is not rounded"
            )
        if adapter.kind == "DoRA" and spec.lora is not None and spec.lora.merge:
            raise ConfigError(
                f"policy.lora.merge: {adapter.origin.partition(': ')[2]} is a DoRA: the rows of a DoRA weight are "
                "scaled, too, and are not folded in; set it to false"
            )
        if adapter.kind == "DoRA" and (spec.rounded_file or spec.quantize == "float8"):
            raise ConfigError(
                f"{adapter.origin} is a DoRA, which measures weights at every call, and these are in fewer bits; "
                "train it on the pipeline that is not rounded, or with policy.quantize: 8bit"
            )


def _rounded(networks: Mapping[str, Any]) -> list[str]:
    """Return the names of networks that were stored in fewer bits, or are now."""
    return [name for name, network in networks.items() if "quantization_config" in network.config]


def check_rounded(spec: PolicySpec, networks: Mapping[str, Any]) -> None:
    """Refuse to train or to change weights that were stored in fewer bits, whoever did that.

    Raises:
        ConfigError: Saying what can be done.
    """
    rounded = _rounded(networks)
    if not rounded:
        return
    where = spec.single_file or spec.pipeline
    if problem := spec.cannot_round():
        raise ConfigError(f"policy.pipeline: the {rounded[0]} of {where} is stored in fewer bits: {problem}")
