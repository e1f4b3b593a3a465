"""A whole pipeline with what was trained in it, or its trained networks alone as their authors publish them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import save_file
from torch import Tensor, nn

from alignment.checkpoints.adapter_files import frozen_file, lying_under
from alignment.checkpoints.artifacts import Card, Classes, write_card
from alignment.checkpoints.contents import pipeline_digest
from alignment.checkpoints.formats import check_parts, check_written
from alignment.checkpoints.state import contents_of
from alignment.errors import CheckpointError, ConfigError, PipelineError
from alignment.policy.networks.adapter_kinds import Adapter
from alignment.policy.networks.adapter_places import LORA_FILE, file_name
from alignment.policy.networks.adapters import read_adapters
from alignment.policy.networks.loading import components_listed, denoiser_name, experts, load_pipeline
from alignment.policy.networks.module_names import no_original, to_original
from alignment.policy.networks.spec import GGUF, PolicySpec
from alignment.policy.networks.tuning import fold
from reward_models.foreign import ForeignCode, first_line


def write_pipeline(to: Path, card: Card, pipe: Any) -> None:
    """Write a pipeline, and read its trained networks back.

    Args:
        to: An empty folder.
        card: Of the checkpoint.
        pipe: The base pipeline with the trained weights in it.

    Raises:
        CheckpointError: If the files are not what was to be written.
    """
    pipe.save_pretrained(to)
    for name in experts(pipe):
        check_parts(to / name, pipe.components[name].state_dict())
    write_card(to, Classes.of(pipe), layout="pipeline", card=card)


def write_originals(to: Path, card: Card, pipe: Any, header: Mapping[str, str]) -> None:
    """Write each trained network into one file, in the names of its authors, and read it back as diffusers does.

    Args:
        to: An empty folder.
        card: Of the checkpoint.
        pipe: The base pipeline with the trained weights in it.
        header: What the header of each file says.

    Raises:
        ConfigError: If its class has no such names, or diffusers reads other tensors from them.
        CheckpointError: If the file is not what was to be written.
    """
    for name, network in experts(pipe).items():
        kind, tensors = type(network), network.state_dict()
        original = to_original(kind.__name__, network.config, tensors)
        check_originals(kind.__name__, network.config, original, tensors)
        save_file(original, to / f"{name}.safetensors", {"format": "pt", **header})
        check_written(to / f"{name}.safetensors", original)
    write_card(to, Classes.of(pipe), layout="original", card=card)


def check_originals(
    kind: str, config: Mapping[str, Any], original: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Compare what diffusers makes of tensors in their authors' names with what they are in its own, bit by bit.

    Args:
        kind: Class of the network.
        config: Its configuration.
        original: Tensors as the authors name them.
        tensors: Tensors as diffusers does.

    Raises:
        ConfigError: Naming the first that is not the same.
    """

    def unreadable(error: BaseException) -> ConfigError:
        return no_original(kind, f"diffusers does not read them back, perhaps for its size ({first_line(error)})")

    with ForeignCode(unreadable):
        convert: Any = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
        made: Mapping[str, Tensor | None] = convert(checkpoint=dict(original), config=dict(config))
    read = {name: tensor for name, tensor in made.items() if tensor is not None}
    for name in [*tensors, *read]:
        mine, theirs = tensors.get(name), read.get(name)
        if mine is None or theirs is None or mine.dtype != theirs.dtype or not torch.equal(mine, theirs):
            raise no_original(kind, f"diffusers does not read {name} back")


def to_dtype(pipe: Any, dtype: torch.dtype | None) -> None:
    """Round the trained networks of a pipeline; None leaves them as they were."""
    for name in experts(pipe) if dtype is not None else ():
        pipe.components[name].to(dtype)


def trained_pipeline(checkpoint: Path, card: Card, pipeline: str | None = None) -> Any:
    """Return the base pipeline with the trained weights of a checkpoint in it, on the CPU.

    Args:
        checkpoint: A verified checkpoint.
        card: Its card.
        pipeline: Where the base pipeline is, if not where training found it.

    Raises:
        CheckpointError: If the checkpoint is of another pipeline.
        ConfigError: If the base pipeline has moved, or its weights are rounded.
        PipelineError: If the base pipeline cannot be loaded.
    """
    try:
        pipe = load_pipeline(base_of(card, pipeline), torch.device("cpu"))
    except PipelineError as error:
        if pipeline is not None:
            raise
        raise PipelineError(
            f"{error}. If it is a folder, it was named from the one that training was started in: say where it is with "
            "`--pipeline PATH`"
        ) from error
    _compare(checkpoint, card, pipe)
    component, networks = denoiser_name(pipe), experts(pipe)
    if any("quantization_config" in network.config for network in networks.values()):
        raise ConfigError(
            f"the weights of {pipe.config._name_or_path} are rounded, so that nothing can be put into them; give the "
            "pipeline that is not with `--pipeline PATH`"
        )
    adapters: Mapping[str, Adapter] = {}
    if (checkpoint / LORA_FILE).is_file():
        for name in networks:
            _there(checkpoint / file_name(name, component), pipe)
        adapters = _read(checkpoint, pipe, networks)
        _fold_frozen(checkpoint, card, pipe, networks)
    for name, network in networks.items():
        if name in adapters:
            fold(network, adapters[name], 1.0)
        else:
            pipe.register_modules(**{name: _trained(checkpoint / name, name, network, pipe)})
    return pipe


def declared(card: Card, pipeline: str | None, main: str) -> Classes:
    """Return the classes of the base pipeline by its index alone; no weights are read.

    Args:
        card: Of the checkpoint.
        pipeline: Where the base pipeline is, if not where training found it.
        main: Name of its main trained component.

    Raises:
        CheckpointError: If it has no such component.
        ConfigError: If it is not there.
        PipelineError: If diffusers has no such classes.
    """
    spec = base_of(card, pipeline, index=True)
    try:
        index = diffusers.DiffusionPipeline.load_config(
            spec.pipeline, revision=spec.revision, local_files_only=Path(spec.pipeline).is_dir()
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the index of the pipeline it was trained on, {spec.pipeline}, cannot be read: "
            f"{str(error).splitlines()[0]}; say where it is with `--pipeline PATH`"
        ) from error
    index = cast(Mapping[str, Any], index)
    kinds = components_listed(index)
    trained = [main, *(name for name in kinds if name.startswith(f"{main}_") and kinds[name] == kinds.get(main))]
    named = {
        "pipeline": str(spec.pipeline_class or index["_class_name"]),
        **{name: kinds.get(name) for name in trained},
    }
    for name, kind in named.items():
        if kind is None:
            raise CheckpointError(
                f"{spec.pipeline} has no {name}, which was trained; give the pipeline that it was trained on with "
                "`--pipeline PATH`"
            )
        if kind not in dir(diffusers):
            raise PipelineError(f"{spec.pipeline}: diffusers has no class {kind} for its {name}")
    found = {name: getattr(diffusers, str(kind)) for name, kind in named.items()}
    return Classes(found.pop("pipeline"), found)


def check_fits(checkpoint: Path, pipeline: str, classes: Classes) -> None:
    """Refuse a base pipeline in whose networks the adapters of a checkpoint have no place; no weights are read.

    Args:
        checkpoint: A verified checkpoint of adapters.
        pipeline: Folder of the pipeline.
        classes: Those of the pipeline.

    Raises:
        CheckpointError: If names or shapes of modules are others.
    """
    networks = {}
    for name, kind in classes.trained.items():
        network: Any = kind
        with torch.device("meta"):
            networks[name] = network.from_config(network.load_config(pipeline, subfolder=name))
    _read(checkpoint, object.__new__(classes.pipeline), networks)


def _compare(checkpoint: Path, card: Card, pipe: Any) -> None:
    """Warn of a base pipeline that is another one, by content, than that of the training."""
    rounded = card.config["policy"].get("quantize") is not None
    known = None if rounded else contents_of(checkpoint).get("policy.pipeline")
    if known is not None and pipeline_digest(pipe) != known:
        warnings.warn(
            f"{pipe.config._name_or_path} is not the pipeline that {checkpoint} was trained on, by content: what comes "
            "of it is not what training showed",
            stacklevel=3,
        )


def base_of(card: Card, pipeline: str | None, *, index: bool = False) -> PolicySpec:
    """Return where the base pipeline is, and how it is loaded.

    Args:
        card: Of the checkpoint.
        pipeline: Where it is, if not where training found it.
        index: Whether its index alone is wanted, so that it does not matter what its weights are.

    Raises:
        ConfigError: If it has moved.
    """
    policy = card.config["policy"]
    place = policy["pipeline"] if pipeline is None else pipeline
    revision = policy["revision"] if pipeline is None else None
    if Path(place).is_absolute() and not Path(place).is_dir():
        if pipeline is not None:
            raise ConfigError(f"--pipeline: there is no folder {place}")
        raise ConfigError(
            f"the pipeline it was trained on is not in {place} any more; say where with `--pipeline PATH`"
        )
    file = policy.get("single_file") if pipeline is None and not index else None
    if file is not None and file.endswith(GGUF):
        raise ConfigError(
            f"it was trained on {file}, whose weights are rounded; give the pipeline that is not with `--pipeline PATH`"
        )
    return PolicySpec(place, revision, file, policy.get("pipeline_class"), dtype=policy["dtype"])


def _trained(folder: Path, name: str, network: Any, pipe: Any) -> nn.Module:
    """Return a component of a full fine-tuning."""
    trained = type(network).from_pretrained(_there(folder, pipe), torch_dtype=network.dtype)
    if (told := _shape(trained)) != (wanted := _shape(network)):
        differing = ", ".join(key for key in sorted(told | wanted) if told.get(key) != wanted.get(key))
        raise CheckpointError(
            f"{folder} is not the {name} of this {type(pipe).__name__}: they differ in {differing}; "
            "give the pipeline that it was trained on with `--pipeline PATH`"
        )
    return trained


def _read(place: Path, pipe: Any, networks: Mapping[str, Any]) -> Mapping[str, Adapter]:
    try:
        return read_adapters("checkpoint", str(place), pipe, networks)
    except ConfigError as error:
        raise CheckpointError(f"{error}; give the pipeline that it was trained on with `--pipeline PATH`") from error


def _fold_frozen(checkpoint: Path, card: Card, pipe: Any, networks: Mapping[str, Any]) -> None:
    """Fold in what training was on top of, from the checkpoint's own copies."""
    main = next(iter(networks))
    for k, frozen in enumerate(lying_under(card.config)):
        for name, network in networks.items():
            file = checkpoint / frozen_file(k, name, main)
            if file.is_file():
                fold(network, _read(file, pipe, {name: network})[name], frozen["weight"])


def _shape(network: Any) -> dict[str, object]:
    """Return what a network was built from."""
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


def _there(path: Path, pipe: Any) -> Path:
    """Return `path` if the checkpoint has it.

    Raises:
        CheckpointError: If it has not, so that it comes from another pipeline.
    """
    if not path.exists():
        found = ", ".join(sorted(entry.name for entry in path.parent.iterdir()))
        raise CheckpointError(
            f"{path.parent} has no {path.name}, which {type(pipe).__name__} needs; it has {found}. Give the pipeline "
            "that it was trained on with `--pipeline PATH`"
        )
    return path
