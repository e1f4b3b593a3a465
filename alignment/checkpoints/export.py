"""`visalign export`: a checkpoint as one of three things that plain diffusers loads."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from alignment.checkpoints.adapter_files import frozen_file
from alignment.checkpoints.artifacts import CARD, CARD_DATA, Card, read_card, write_card
from alignment.checkpoints.manifest import verify
from alignment.data.tensor_files import heed_umask
from alignment.errors import CheckpointError, ConfigError, EnvironmentProblem
from alignment.policy.networks.adapter_places import LORA_FILE, file_name
from alignment.policy.networks.adapters import Adapter, read_adapters
from alignment.policy.networks.loading import denoiser_name, experts, load_pipeline, no_progress_bars
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.networks.tuning import fold
from alignment.reports.terminal import show

Form = Literal["lora", "merged", "full"]


def main(checkpoint: str, to: str, *, form: Form, pipeline: str | None = None) -> int:
    """Export, print where to, and return the exit code 0."""
    export(Path(checkpoint), Path(to), form, pipeline)
    show(f"{to}: {form} weights of {checkpoint}; {Path(to) / CARD} says how to load them")
    return 0


def export(checkpoint: Path, to: Path, form: Form, pipeline: str | None = None) -> None:
    """Write a checkpoint into `to` as adapters alone, or as a whole pipeline.

    Args:
        checkpoint: A `checkpoint-N` folder.
        to: A folder that does not exist or is empty; it appears whole or not at all.
        form: "lora", the adapters; "merged", the base pipeline with the adapters folded into its weights; "full", the
            base pipeline with the component of a full fine-tuning in place.
        pipeline: Where the base pipeline is, if not where training found it.

    Raises:
        CheckpointError: If the checkpoint is damaged.
        ConfigError: If it does not hold what is asked for, or `to` is taken.
        PipelineError: If the base pipeline cannot be loaded.
        EnvironmentProblem: If the disk refuses.
    """
    verify(checkpoint)
    card = read_card(checkpoint)
    adapters = (checkpoint / LORA_FILE).is_file()
    if adapters and form == "full":
        raise ConfigError(f"{checkpoint} holds adapters; export them with `--as lora`, or folded in with `--as merged`")
    if not adapters and form != "full":
        raise ConfigError(f"{checkpoint} holds fully trained weights and no adapters; export them with `--as full`")
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not empty; choose another `--to`, or remove it")
    temporary = to.absolute().with_name(f"{to.absolute().name}.tmp-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        if form == "lora":
            files = (*checkpoint.glob("pytorch_lora_weights*"), *checkpoint.glob("frozen_adapter_*"))
            for path in (*files, checkpoint / CARD, checkpoint / CARD_DATA):
                shutil.copyfile(path, temporary / path.name)
        else:
            with no_progress_bars():
                _write_pipeline(checkpoint, temporary, card, pipeline)
        heed_umask(temporary)
        os.rename(temporary, to)
    except (OSError, SafetensorError) as error:
        raise EnvironmentProblem(f"{to} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # not there any more once it is renamed


def _write_pipeline(checkpoint: Path, to: Path, card: Card, pipeline: str | None) -> None:
    pipe = _base(card, pipeline)
    component, networks = denoiser_name(pipe), experts(pipe)
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
            trained = type(network).from_pretrained(_there(checkpoint / name, pipe), torch_dtype=network.dtype)
            if (told := _shape(trained)) != (wanted := _shape(network)):
                differing = ", ".join(key for key in sorted(told | wanted) if told.get(key) != wanted.get(key))
                raise CheckpointError(
                    f"{checkpoint / name} is not the {name} of this {type(pipe).__name__}: they differ in {differing}; "
                    "give the pipeline that it was trained on with `--pipeline PATH`"
                )
            pipe.register_modules(**{name: trained})
    pipe.save_pretrained(to)
    write_card(to, pipe, component, layout="pipeline", card=card)


def _read(place: Path, pipe: Any, networks: Mapping[str, Any]) -> Mapping[str, Adapter]:
    try:
        return read_adapters("checkpoint", str(place), pipe, networks)
    except ConfigError as error:
        raise CheckpointError(f"{error}; give the pipeline that it was trained on with `--pipeline PATH`") from error


def _fold_frozen(checkpoint: Path, card: Card, pipe: Any, networks: Mapping[str, Any]) -> None:
    """Fold in what training was on top of, from the checkpoint's own copies."""
    main = next(iter(networks))
    for k, frozen in enumerate(card.config["policy"].get("adapters") or ()):
        for name, network in networks.items():
            file = checkpoint / frozen_file(k, name, main)
            if file.is_file():
                fold(network, _read(file, pipe, {name: network})[name], frozen["weight"])


def _base(card: Card, pipeline: str | None) -> Any:
    policy = card.config["policy"]
    place = policy["pipeline"] if pipeline is None else pipeline
    revision = policy["revision"] if pipeline is None else None
    if Path(place).is_absolute() and not Path(place).is_dir():
        raise ConfigError(
            f"the pipeline it was trained on is not in {place} any more; say where with `--pipeline PATH`"
        )
    spec = PolicySpec(place, revision, policy.get("pipeline_class"), dtype=policy["dtype"])
    return load_pipeline(spec, torch.device("cpu"))


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
