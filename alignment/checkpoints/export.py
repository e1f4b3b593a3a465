"""`visalign export`: a checkpoint as other programs load it, read back before it appears."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from alignment.checkpoints import formats
from alignment.checkpoints.adapter_files import frozen_file, lying_under, read_own
from alignment.checkpoints.artifacts import CARD, Card, name_of_base, read_card, write_card
from alignment.checkpoints.hub import push_folder, require_token
from alignment.checkpoints.manifest import verify
from alignment.checkpoints.whole import (
    check_fits,
    declared,
    to_dtype,
    trained_pipeline,
    write_originals,
    write_pipeline,
)
from alignment.data.tensor_files import heed_umask
from alignment.errors import ConfigError, EnvironmentProblem
from alignment.policy.networks.adapter_places import LORA_FILE, PEFT_FILE, file_name
from alignment.policy.networks.loading import no_progress_bars
from alignment.reports.terminal import show

Whole = Literal["merged", "full", "gguf-ready"]
Form = formats.Form | Whole


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        form: The format: adapters alone as "diffusers", "peft", "comfyui" or "kohya" has them; "merged", the base
            pipeline with the adapters folded into its weights; "full", the base pipeline with the component of a full
            fine-tuning in place; "gguf-ready", the trained networks of either in one file each, named as their
            authors do, for programs that make GGUF files.
        pipeline: Where the base pipeline is, if not where training found it.
        dtype: Of the adapters, or of the trained components of a whole pipeline; None as they are.
        trigger: Words that call up what was learned, for the header and the card.
        licence: The hub's name of the weights' licence, for the header and the card.
    """

    form: Form
    pipeline: str | None = None
    dtype: str | None = None
    trigger: str | None = None
    licence: str | None = None

    @property
    def stored(self) -> torch.dtype | None:
        """The dtype as torch has it."""
        return None if self.dtype is None else getattr(torch, self.dtype)


def main(checkpoint: str, to: str, order: Order, push: str | None = None) -> int:
    """Export, print where to, upload it where that was asked for, and return the exit code 0."""
    if push is not None:
        require_token(push)
    export(Path(checkpoint), Path(to), order)
    show(f"{to}: {checkpoint} as {order.form}, read back; {Path(to) / CARD} says how to load it")
    if push is not None:
        show(f"{push_folder(Path(to), push)} has it now")
    return 0


def export(checkpoint: Path, to: Path, order: Order) -> None:
    """Write a checkpoint into `to`, and compare what was written with what it should be, bit by bit.

    Args:
        checkpoint: A `checkpoint-N` folder.
        to: A folder that does not exist or is empty; it appears whole or not at all.
        order: As what.

    Raises:
        CheckpointError: If the checkpoint is damaged, or the files are not what was to be written.
        ConfigError: If it does not hold what is asked for, the format has no names for it, or `to` is taken.
        PipelineError: If the base pipeline cannot be loaded.
        EnvironmentProblem: If the disk refuses.
    """
    verify(checkpoint)
    card = replace(read_card(checkpoint), trigger=order.trigger, licence=order.licence)
    adapters = (checkpoint / LORA_FILE).is_file()
    if adapters and order.form == "full":
        raise ConfigError(
            f"{checkpoint} holds adapters; export them with `--as diffusers`, or folded in with `--as merged`"
        )
    if not adapters and order.form not in ("full", "gguf-ready"):
        raise ConfigError(f"{checkpoint} holds fully trained weights and no adapters; export them with `--as full`")
    if checkpoint.resolve() in (here := Path(os.path.realpath(to)), *here.parents):
        raise ConfigError(f"{to} lies in the checkpoint; choose another `--to`")
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not empty; choose another `--to`, or remove it")
    with _appearing(to) as folder:
        if order.form in ("merged", "full", "gguf-ready"):
            with no_progress_bars():
                pipe = trained_pipeline(checkpoint, card, order.pipeline)
                to_dtype(pipe, order.stored)
                if order.form == "gguf-ready":
                    write_originals(folder, card, pipe, _header(card))
                else:
                    write_pipeline(folder, card, pipe)
        else:
            _write_adapters(checkpoint, folder, card, order)


@contextlib.contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `to` at the end, or vanishes."""
    place = Path(os.path.realpath(to))  # a link stays one, and its target is written
    temporary = place.with_name(f".tmp-{secrets.token_hex(4)}")  # no longer than a name may be, as the target's might
    try:
        temporary.mkdir(parents=True)
        yield temporary
        heed_umask(temporary)
        os.rename(temporary, place)
    except (OSError, SafetensorError) as error:
        raise EnvironmentProblem(f"{to} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # not there any more once it is renamed


def _write_adapters(checkpoint: Path, folder: Path, card: Card, order: Order) -> None:
    """Write every adapter of a checkpoint, those that training was on top of too."""
    form = order.form
    assert form not in ("merged", "full", "gguf-ready")
    trained = read_own(checkpoint / LORA_FILE)
    main = trained.origin
    classes = declared(card, order.pipeline, main)
    if order.pipeline is not None and Path(order.pipeline).is_dir():
        check_fits(checkpoint, order.pipeline, classes)
    header = _header(card)
    for name, kind in classes.trained.items():
        frozen = [frozen_file(k, name, main) for k, _ in enumerate(lying_under(card.config))]
        for file in (file_name(name, main), *frozen):
            if not (checkpoint / file).is_file():
                continue
            adapter = formats.in_dtype(read_own(checkpoint / file), order.stored)
            if form == "diffusers" and classes.layout(adapter.kind) == "alone":
                raise formats.not_loaded(adapter.kind, kind.__name__)
            if form == "kohya" and adapter.kind == "DoRA":
                raise ConfigError(
                    f"--as kohya: kohya's tools know no magnitudes, and would read the DoRA {checkpoint / file} as a "
                    "plain LoRA; use --as comfyui, or --as merged for the whole pipeline"
                )
            path = folder / _path(file, name, main, form)
            path.parent.mkdir(parents=True, exist_ok=True)
            formats.write_form(adapter, path, form, kind.__name__, header)
    layout = classes.layout(trained.kind) if form == "diffusers" else form
    write_card(folder, classes, layout=layout, card=card)


def _path(file: str, component: str, main: str, form: formats.Form) -> Path:
    """Return where a file of a checkpoint goes: PEFT has a folder for each adapter."""
    if form != "peft":
        return Path(file)
    frozen = file.partition(".")[0] if file.startswith("frozen") else ""
    return Path("" if component == main and not frozen else frozen or component, PEFT_FILE)


def _header(card: Card) -> Mapping[str, str]:
    """Return what the header of each file says, by the keys of the model specification where it has one."""
    config = card.config
    recipe = {part: config[part]["type"] for part in ("objective", "source") if part in config}
    said = {
        "modelspec.title": str(config["name"]),
        "modelspec.license": card.licence,
        "modelspec.trigger_phrase": card.trigger,
        "base_model": name_of_base(card),
        "run": str(config["name"]),
        "recipe": json.dumps(recipe),
        "step": str(card.step),
    }
    return {key: value for key, value in said.items() if value is not None}
