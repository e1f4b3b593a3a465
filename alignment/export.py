"""`visalign export`: a checkpoint as one of three things that plain diffusers loads."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from alignment.artifacts import CARD, CARD_DATA, LORA_FILE, Card, read_card, write_card
from alignment.errors import CheckpointError, ConfigError, EnvironmentProblem
from alignment.loading import DENOISERS, load_pipeline, no_progress_bars
from alignment.manifest import verify
from alignment.spec import PolicySpec

Form = Literal["lora", "merged", "full"]


def main(checkpoint: str, to: str, *, form: Form, pipeline: str | None = None) -> int:
    """Export, say where to, and return the exit code 0."""
    export(Path(checkpoint), Path(to), form, pipeline)
    print(f"{to}: {form} weights of {checkpoint}; {Path(to) / CARD} says how to load them")  # noqa: T201
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
            for name in (LORA_FILE, CARD, CARD_DATA):
                shutil.copyfile(checkpoint / name, temporary / name)
        else:
            with no_progress_bars():
                _write_pipeline(checkpoint, temporary, card, pipeline)
        os.rename(temporary, to)
    except (OSError, SafetensorError) as error:
        raise EnvironmentProblem(f"{to} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # not there any more once it is renamed


def _write_pipeline(checkpoint: Path, to: Path, card: Card, pipeline: str | None) -> None:
    pipe = _base(card, pipeline)
    component = _component(checkpoint)
    if (checkpoint / LORA_FILE).is_file():
        denoiser = pipe.components[component]
        denoiser.load_lora_adapter(str(checkpoint), prefix=component, weight_name=LORA_FILE)
        denoiser.fuse_lora()
        denoiser.unload_lora()
    else:
        dtype = pipe.components[component].dtype
        trained = type(pipe.components[component]).from_pretrained(checkpoint, subfolder=component, torch_dtype=dtype)
        pipe.register_modules(**{component: trained})
    pipe.save_pretrained(to)
    write_card(to, pipe, component, layout="pipeline", card=card)


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


def _component(checkpoint: Path) -> str:
    """Return the name of the component that was trained."""
    if (checkpoint / LORA_FILE).is_file():
        with safe_open(checkpoint / LORA_FILE, framework="pt") as file:
            return next(iter(file.keys())).split(".")[0]
    found = [name for name in DENOISERS if (checkpoint / name).is_dir()]
    if not found:
        raise CheckpointError(
            f"{checkpoint} has none of the folders {', '.join(DENOISERS)}: there are no weights in it"
        )
    return found[0]
