"""What a resumed run needs beyond the weights that users load: safetensors and JSON, nothing that can run code.

No random generator is stored: every random number is a function of the seed, the step and what it is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.checkpoints.manifest import NAME, STATE, read_manifest
from alignment.checkpoints.parts import fill, read_parts, sketch_parts, spread, write_parts
from alignment.errors import CheckpointError

# Config keys that decide where a run goes. The others (name, output, evaluation, device, threads) may change.
TRAJECTORY = ("policy", "data", "source", "objective", "optimizer", "snapshots", "batch", "seed")
# Parts of those that change speed, place or memory, and no number but by rounding.
FREE = {
    "optimizer.offload",
    "policy.check_latents",
    "policy.embedding_cache",
    "policy.gradient_checkpointing",
    "policy.offload",
    "policy.trajectories",
    "batch.microbatch",
}
# What configs of earlier versions say otherwise, and mean.
ALIKE: dict[str, tuple[object, ...]] = {"optimizer.betas": (None, [0.9, 0.999]), "optimizer.epsilon": (None, 1e-8)}
# Where the content of a key is, which may change where the content does not.
PLACES = {
    "data.prompts": ("data.prompts",),
    "policy.adapters": ("policy.adapters",),
    "policy.lora.start": ("policy.lora.start",),
    "policy.pipeline": ("policy.pipeline", "policy.revision", "policy.single_file"),
}
PARTS = "parts"
"""Folder of the tensors, where several processes wrote them."""
SIGNED = ("exp_avg", "momentum_buffer")
"""What optimisers keep that may be below zero: means of gradients, none of their squares and no count."""
_DAMAGED = "the run cannot go on from this checkpoint; resume from an earlier one, or start a new run"


class _Progress(BaseModel):
    """What `progress.json` holds; an earlier version may lack the last four."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)

    step: Annotated[int, Field(ge=0)]
    wall_seconds: Annotated[float, Field(ge=0)]
    moments: int | None = None
    contents: dict[str, str] = {}
    found: dict[str, Any] = {}
    scaling: dict[str, Annotated[float, Field(ge=0)]] = {}


@dataclass(frozen=True)
class TrainState:
    """A run between two steps.

    Attributes:
        step: Steps done.
        trainable: The trained parameters, by name, float32.
        moments: What the optimiser keeps of them, by "index.name".
        snapshots: The named copies of the trained parameters.
        wall_seconds: Time spent so far, over all resumptions.
        config: The resolved config, as JSON can hold it.
        contents: Hashes of what the run is made from, by the config's key; see `alignment/checkpoints/contents.py`.
        found: What was found out about the pipeline, as JSON can hold it; empty where that was not recorded.
        scaling: Of losses, where gradients pass through float16; empty elsewhere.
        parts: Where the content of the tensors lies, if several processes wrote it: they are then without.
    """

    step: int
    trainable: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    snapshots: Mapping[str, Mapping[str, Tensor]]
    wall_seconds: float
    config: Mapping[str, object]
    contents: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, object] = field(default_factory=dict)
    scaling: Mapping[str, float] = field(default_factory=dict)
    parts: Path | None = None


def write_state(folder: Path, state: TrainState, *, writes: bool = True) -> None:
    """Write `state` into `folder/state/`.

    Args:
        folder: An existing folder.
        state: What to write. Where processes hold parts of its tensors, all of them call this together.
        writes: Whether this process writes what is the same on all.
    """
    target = folder / STATE
    if spread(state.trainable):
        write_parts(target / PARTS, joined(state.trainable, state.snapshots, state.moments))
        if not writes:
            return
    else:
        target.mkdir()
        _save(target / "trainable.safetensors", state.trainable)
        for name, copy in state.snapshots.items():
            _save(target / f"snapshot-{name}.safetensors", copy)
        _save(target / "optimizer.safetensors", state.moments)
    progress = {
        "step": state.step,
        "wall_seconds": state.wall_seconds,
        "moments": len(state.moments),
        "contents": dict(state.contents),
        "found": state.found,
        "scaling": dict(state.scaling),
    }
    (target / "progress.json").write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
    (target / "config.json").write_text(json.dumps(state.config, indent=2) + "\n", encoding="utf-8")


def joined(
    trainable: Mapping[str, Tensor], snapshots: Mapping[str, Mapping[str, Tensor]], moments: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return all tensors of a state under one name each, as they are kept in parts."""
    copies = {f"snapshot.{copy}/{name}": z for copy, weights in snapshots.items() for name, z in weights.items()}
    own = {f"trainable/{name}": z for name, z in trainable.items()}
    return {**own, **copies, **{f"optimizer/{name}": z for name, z in moments.items()}}


def _parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return what `joined` was given."""
    found: dict[str, dict[str, Tensor]] = {"trainable": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        found.setdefault(kind, {})[name] = tensor
    trainable, moments = found.pop("trainable"), found.pop("optimizer")
    return trainable, {kind.removeprefix("snapshot."): copy for kind, copy in found.items()}, moments


def restore(
    state: TrainState,
    trainable: Mapping[str, Tensor],
    snapshots: Mapping[str, Mapping[str, Tensor]],
    moments: Mapping[str, Tensor],
) -> None:
    """Fill the tensors of a run with those of a state that fits it, wherever they lie.

    Args:
        state: As it was read.
        trainable: The trained parameters of the run.
        snapshots: The named copies of them.
        moments: What its optimiser keeps, by "index.name".
    """
    here = joined(trainable, snapshots, moments)
    if state.parts is not None:
        read_parts(state.parts, here)
        return
    saved = joined(state.trainable, state.snapshots, state.moments)
    for name, tensor in here.items():
        fill(tensor, saved[name])


def read_state(folder: Path) -> TrainState:
    """Return the state written into `folder/state/`, on the CPU; tensors in parts are without their content.

    Raises:
        CheckpointError: If the checkpoint has no such part, lacks something of it, or is damaged; naming file and key.
    """
    source = folder / STATE
    if not source.is_dir():
        raise CheckpointError(f"{folder} has no {STATE}/ folder: it can be loaded, but a run cannot go on from it")
    progress = _read_progress(source / "progress.json")
    if (folder / NAME).is_file() and (done := read_manifest(folder).step) != progress["step"]:
        raise CheckpointError(
            f"{source / 'progress.json'}: step is {progress['step']}, but {NAME} says {done}; {_DAMAGED}"
        )
    parts = source / PARTS if (source / PARTS).is_dir() else None
    if parts is not None:
        trainable, snapshots, moments = _parted(sketch_parts(parts))
    else:
        trainable, moments = _load(source / "trainable.safetensors"), _load(source / "optimizer.safetensors")
        snapshots = {
            path.stem.removeprefix("snapshot-"): _load(path) for path in sorted(source.glob("snapshot-*.safetensors"))
        }
    if len(moments) != progress.get("moments", len(moments)):
        raise CheckpointError(
            f"{parts or source / 'optimizer.safetensors'} holds {len(moments)} of {progress['moments']} tensors that "
            f"were saved: {_DAMAGED}"
        )
    return TrainState(
        step=progress["step"],
        trainable=trainable,
        moments=_checked(parts or source / "optimizer.safetensors", moments),
        snapshots=snapshots,
        wall_seconds=progress["wall_seconds"],
        config=read_config(folder),
        contents=progress.get("contents", {}),
        found=progress.get("found", {}),
        scaling=progress.get("scaling", {}),
        parts=parts,
    )


def _read_progress(path: Path) -> dict[str, Any]:
    progress = _read_object(path)
    if lacking := sorted({"step", "wall_seconds"} - progress.keys()):
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}: it was written by another version of visalign")
    try:
        _Progress.model_validate(progress)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {key} is damaged: {first['msg'].lower()}; {_DAMAGED}") from None
    return progress


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {_DAMAGED}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object but {type(found).__name__}; {_DAMAGED}")
    return found


def check_fits(
    state: TrainState,
    trainable: Mapping[str, Tensor],
    snapshots: Mapping[str, Mapping[str, Tensor]],
    moments: Mapping[str, Tensor],
) -> None:
    """Refuse a state that is not of these weights: tensors that are missing, too many, or of another shape or dtype.

    Torch would take a smaller tensor for many equal numbers, and start lost moments at nothing, without a word.

    Args:
        state: As it was read.
        trainable: The trained parameters of this run.
        snapshots: The named copies of them that this run keeps.
        moments: What its optimiser keeps, by "index.name".

    Raises:
        CheckpointError: Naming the first few tensors that differ.
    """
    _check_tensors("weights (trainable.safetensors)", state.trainable, trainable)
    if differing := sorted(state.snapshots.keys() ^ snapshots.keys()):
        raise CheckpointError(_not_this_run("frozen copies", [f"{name} is on one side only" for name in differing]))
    for name, copy in snapshots.items():
        _check_tensors(f"frozen copy {name} (snapshot-{name}.safetensors)", state.snapshots[name], copy)
    _check_tensors("optimiser's moments (optimizer.safetensors)", state.moments, moments)


def _check_tensors(what: str, saved: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
    lacking = [f"{name} is on one side only" for name in sorted(saved.keys() ^ here.keys())]
    other = [
        f"{name} has shape {list(saved[name].shape)}, not {list(here[name].shape)}"
        for name in sorted(saved.keys() & here.keys())
        if saved[name].shape != here[name].shape
    ]
    other += [
        f"{name} has dtype {saved[name].dtype}, not {here[name].dtype}"
        for name in sorted(saved.keys() & here.keys())
        if saved[name].dtype != here[name].dtype
    ]
    if lacking or other:
        raise CheckpointError(_not_this_run(what, lacking + other))


def _not_this_run(what: str, differences: list[str]) -> str:
    more = f" (and {len(differences) - 5} more)" if len(differences) > 5 else ""
    return f"the checkpoint's {what} are not this run's: {'; '.join(differences[:5])}{more}; start a new run"


def read_config(folder: Path) -> dict[str, object]:
    """Return the resolved config of the run that wrote `folder`; empty if it is not there any more."""
    path = folder / STATE / "config.json"
    return _read_object(path) if path.is_file() else {}


def check_same_run(
    saved: Mapping[str, object], current: Mapping[str, object], contents: Mapping[str, str] | None = None
) -> None:
    """Refuse to go on with a config that would have led elsewhere.

    Args:
        saved: Config of the run that wrote the checkpoint.
        current: Config of the run that wants to resume from it.
        contents: What the checkpoint knows by content; `check_same_contents` looks at that, and places may differ.

    Raises:
        CheckpointError: Naming every field that differs, with both values.
    """
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    free = FREE | {place for key in contents or {} for place in PLACES.get(key, ())}
    differences = [
        difference
        for key in (*TRAJECTORY, *(["steps"] if _decays(saved) else []))
        for difference in _differences(key, saved.get(key), current.get(key), free)
    ]
    if differences:
        raise CheckpointError(
            "this config is not that of the checkpoint, and would not continue its run: "
            + "; ".join(differences)
            + ". Restore these values, or start a new run"
        )


def contents_of(folder: Path) -> Mapping[str, str]:
    """Return the hashes of what a checkpoint's run was made from; none where its state was not kept.

    Raises:
        CheckpointError: If they are damaged.
    """
    path = folder / STATE / "progress.json"
    return _read_progress(path).get("contents", {}) if path.is_file() else {}


def check_same_contents(saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Refuse to go on with prompts or base weights that are not those of the checkpoint, whatever they are called.

    Held-out prompts count too: evaluations of one run are compared picture by picture.

    Args:
        saved: Hashes that the checkpoint keeps; one of an earlier version keeps none.
        current: Hashes of what this run has loaded.

    Raises:
        CheckpointError: Naming every key whose content differs.
    """
    if differing := sorted(key for key in saved.keys() & current.keys() if saved[key] != current[key]):
        raise CheckpointError(
            f"the content of {' and '.join(differing)} is not what the checkpoint's run was made from, and would not "
            "continue it; put back what was there (its place may differ), or start a new run"
        )


def _decays(config: Mapping[str, object]) -> bool:
    """Whether the learning rate depends on how many steps there will be."""
    optimizer = config.get("optimizer")
    return isinstance(optimizer, dict) and optimizer.get("final", 1.0) != 1.0


def _differences(key: str, saved: object, current: object, free: set[str]) -> Iterator[str]:
    if key in free or saved == current or (saved in ALIKE.get(key, ()) and current in ALIKE[key]):
        return
    if isinstance(saved, dict) and isinstance(current, dict):
        for name in sorted(saved.keys() | current.keys()):
            yield from _differences(f"{key}.{name}", saved.get(name), current.get(name), free)
    else:
        yield f"{key} was {json.dumps(saved)}, now it is {json.dumps(current)}"


def _checked(path: Path, moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what an optimiser kept, unless its names or numbers can be of none."""
    for key, value in moments.items():
        known = re.fullmatch(r"[0-9]{1,9}\.([a-z_.]+)", key)
        if known is None:
            raise CheckpointError(f"{path}: {key!r} is not INDEX.NAME, as in 0.step; {_DAMAGED}")
        if known[1] not in SIGNED and not value.is_meta and not bool((value >= 0).all()):  # NaN is not either
            raise CheckpointError(f"{path}: {key} has a number below zero; {_DAMAGED}")
    return moments


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if tensors:  # an optimiser that has not stepped yet has none
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _load(path: Path) -> dict[str, Tensor]:
    # Copied into memory of torch's own: a tensor lying in the file is aligned otherwise, which changes the last bits
    # of a matrix product.
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()} if path.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {_DAMAGED}") from None
