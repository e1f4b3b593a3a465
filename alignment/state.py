"""What a resumed run needs beyond the weights that users load: safetensors and JSON, nothing that can run code.

No random generator is stored: every random number is a function of the seed, the step and what it is for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.errors import CheckpointError
from alignment.manifest import STATE

# Config keys that decide where a run goes. The others (name, output, evaluation, device, threads) may change.
TRAJECTORY = ("policy", "data", "source", "objective", "optimizer", "snapshots", "batch", "seed")
# Parts of those that change speed or place, and no number.
FREE = {"policy.embedding_cache"}


@dataclass(frozen=True)
class TrainState:
    """A run between two steps.

    Attributes:
        step: Steps done.
        trainable: The trained parameters, by name, float32.
        optimizer: `state_dict()` of a `torch.optim.AdamW`.
        snapshots: The named copies of the trained parameters.
        wall_seconds: Time spent so far, over all resumptions.
        config: The resolved config, as JSON can hold it.
    """

    step: int
    trainable: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    snapshots: Mapping[str, Mapping[str, Tensor]]
    wall_seconds: float
    config: Mapping[str, object]


def write_state(folder: Path, state: TrainState) -> None:
    """Write `state` into `folder/state/`."""
    target = folder / STATE
    target.mkdir()
    _save(target / "trainable.safetensors", state.trainable)
    for name, copy in state.snapshots.items():
        _save(target / f"snapshot-{name}.safetensors", copy)
    moments, groups = _split_optimizer(state.optimizer)
    _save(target / "optimizer.safetensors", moments)
    progress = {"step": state.step, "wall_seconds": state.wall_seconds, "optimizer": groups}
    (target / "progress.json").write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")
    (target / "config.json").write_text(json.dumps(state.config, indent=2) + "\n", encoding="utf-8")


def read_state(folder: Path) -> TrainState:
    """Return the state written into `folder/state/`, on the CPU.

    Raises:
        CheckpointError: If the checkpoint has no such part.
    """
    source = folder / STATE
    if not source.is_dir():
        raise CheckpointError(f"{folder} has no {STATE}/ folder: it can be loaded, but a run cannot go on from it")
    progress = json.loads((source / "progress.json").read_text(encoding="utf-8"))
    return TrainState(
        step=progress["step"],
        trainable=_load(source / "trainable.safetensors"),
        optimizer=_join_optimizer(_load(source / "optimizer.safetensors"), progress["optimizer"]),
        snapshots={
            path.stem.removeprefix("snapshot-"): _load(path) for path in sorted(source.glob("snapshot-*.safetensors"))
        },
        wall_seconds=progress["wall_seconds"],
        config=read_config(folder),
    )


def read_config(folder: Path) -> dict[str, object]:
    """Return the resolved config of the run that wrote `folder`; empty if it is not there any more."""
    path = folder / STATE / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def check_same_run(saved: Mapping[str, object], current: Mapping[str, object]) -> None:
    """Refuse to go on with a config that would have led elsewhere.

    Args:
        saved: Config of the run that wrote the checkpoint.
        current: Config of the run that wants to resume from it.

    Raises:
        CheckpointError: Naming every field that differs, with both values.
    """
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    differences = [
        difference
        for key in (*TRAJECTORY, *(["steps"] if _decays(saved) else []))
        for difference in _differences(key, saved.get(key), current.get(key))
    ]
    if differences:
        raise CheckpointError(
            "this config is not that of the checkpoint, and would not continue its run: "
            + "; ".join(differences)
            + ". Restore these values, or start a new run"
        )


def _decays(config: Mapping[str, object]) -> bool:
    """Whether the learning rate depends on how many steps there will be."""
    optimizer = config.get("optimizer")
    return isinstance(optimizer, dict) and optimizer.get("final", 1.0) != 1.0


def _differences(key: str, saved: object, current: object) -> Iterator[str]:
    if key in FREE or saved == current:
        return
    if isinstance(saved, dict) and isinstance(current, dict):
        for name in sorted(saved.keys() | current.keys()):
            yield from _differences(f"{key}.{name}", saved.get(name), current.get(name))
    else:
        yield f"{key} was {json.dumps(saved)}, now it is {json.dumps(current)}"


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the tensors of an AdamW state by "index.name", and its parameter groups."""
    moments = {f"{index}.{name}": value for index, entry in state["state"].items() for name, value in entry.items()}
    return moments, state["param_groups"]


def _join_optimizer(moments: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    # JSON has no tuples.
    return {"state": state, "param_groups": [{**group, "betas": tuple(group["betas"])} for group in groups]}


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if tensors:  # an optimiser that has not stepped yet has none
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _load(path: Path) -> dict[str, Tensor]:
    # Copied into memory of torch's own: a tensor lying in the file is aligned otherwise, which changes the last bits
    # of a matrix product.
    return {name: tensor.clone() for name, tensor in load_file(path).items()} if path.is_file() else {}
