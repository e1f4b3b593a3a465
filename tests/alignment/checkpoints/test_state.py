"""A run that is put away and taken up again is the same run, to the last bit; another run is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.checkpoints.manifest import inspect
from alignment.checkpoints.state import (
    TRAJECTORY,
    TrainState,
    check_fits,
    check_same_contents,
    check_same_run,
    read_config,
    read_state,
    restore,
    write_state,
)
from alignment.errors import CheckpointError

CONFIG: dict[str, Any] = {
    "name": "run",
    "policy": {"pipeline": "base", "lora": {"rank": 4, "targets": ["to_q"]}, "embedding_cache": None},
    "data": {"prompts": "a.txt"},
    "source": {"type": "on_policy", "group_size": 8},
    "objective": {"type": "nft", "beta": 1.0},
    "optimizer": {"learning_rate": 1e-4, "betas": [0.9, 0.999], "final": 1.0},
    "snapshots": {"ema": 0.9},
    "batch": {"updates": 1},
    "evaluation": {"every": 10},
    "output": {"keep": 2},
    "steps": 100,
    "seed": 0,
}


def run_of(parameters: dict[str, torch.nn.Parameter], steps: range, optimizer: torch.optim.AdamW) -> None:
    """Train: the gradient of each step is a function of the step and the weights."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters.values():
            parameter.grad = parameter.detach().sin() + torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def fresh() -> tuple[dict[str, torch.nn.Parameter], torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"b.lora_A": (3, 5), "a.lora_B": (5, 3), "scale": ()}
    parameters = {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    return parameters, torch.optim.AdamW(parameters.values(), lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1)


def moments(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": moment for index, entry in state.items() for name, moment in entry.items()}


def state_of(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.AdamW, snapshots: dict[str, dict[str, Tensor]]
) -> TrainState:
    return TrainState(
        step=5,
        trainable=parameters,
        moments=moments(optimizer),
        snapshots=snapshots,
        wall_seconds=0.1 + 0.2,
        config=CONFIG,
    )


def test_resumed_is_straight_to_the_last_bit(tmp_path: Path) -> None:
    straight, optimizer = fresh()
    run_of(straight, range(10), optimizer)

    first, optimizer = fresh()
    run_of(first, range(5), optimizer)
    write_state(tmp_path, state_of(first, optimizer, {}))

    second, optimizer = fresh()
    run_of(second, range(1), optimizer)
    state = read_state(tmp_path)
    restore(state, second, {}, moments(optimizer))
    run_of(second, range(state.step, 10), optimizer)
    for name, parameter in straight.items():
        torch.testing.assert_close(second[name], parameter, rtol=0, atol=0)


def test_everything_comes_back(tmp_path: Path) -> None:
    parameters, optimizer = fresh()
    run_of(parameters, range(3), optimizer)
    snapshots = {name: {key: value.detach() * 2 for key, value in parameters.items()} for name in ("ema", "behaviour")}
    before = copy.deepcopy(state_of(parameters, optimizer, snapshots))
    write_state(tmp_path, before)
    after = read_state(tmp_path)
    assert (after.step, after.wall_seconds, after.config) == (before.step, before.wall_seconds, before.config)
    assert after.snapshots.keys() == {"ema", "behaviour"}
    for saved, read in (
        (before.trainable, after.trainable),
        *((before.snapshots[name], after.snapshots[name]) for name in snapshots),
        (before.moments, after.moments),
    ):
        torch.testing.assert_close(dict(read), {key: v.detach() for key, v in saved.items()}, rtol=0, atol=0)


def test_only_tensors_and_json_are_written(tmp_path: Path) -> None:
    parameters, optimizer = fresh()
    run_of(parameters, range(1), optimizer)
    write_state(tmp_path, state_of(parameters, optimizer, {"ema": dict(parameters)}))
    files = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert files == [
        "config.json",
        "optimizer.safetensors",
        "progress.json",
        "snapshot-ema.safetensors",
        "trainable.safetensors",
    ]


def test_a_folder_without_state_can_be_loaded_but_not_resumed(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {}
    with pytest.raises(CheckpointError, match="a run cannot go on from it"):
        read_state(tmp_path)


def lose_an_entry(folder: Path) -> None:
    entries = load_file(folder / "optimizer.safetensors")
    del entries["1.exp_avg"]
    save_file(entries, folder / "optimizer.safetensors")


def shrink(name: str, key: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        entries = load_file(folder / name)
        entries[key] = entries[key].flatten()[:1]
        save_file(entries, folder / name)

    return change


def lose_a_key(folder: Path) -> None:
    progress = json.loads((folder / "progress.json").read_text())
    del progress["wall_seconds"]
    (folder / "progress.json").write_text(json.dumps(progress))


def recast(name: str, key: str, how: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        entries = load_file(folder / name)
        save_file({**entries, key: how(entries[key])}, folder / name)

    return change


def told(**other: object) -> Callable[[Path], None]:
    """Write other values into the progress."""

    def change(folder: Path) -> None:
        path = folder / "progress.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **other}))

    return change


def rename_a_moment(folder: Path) -> None:
    entries = load_file(folder / "optimizer.safetensors")
    entries["step"] = entries.pop("0.step")
    save_file(entries, folder / "optimizer.safetensors")


def seal_another_step(folder: Path) -> None:
    made = inspect(folder.parent, step=6, sequence=1, world_size=1, config={})
    (folder.parent / "manifest.json").write_text(made.dumps())


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lose_an_entry, "holds 8 of 9 tensors that were saved"),
        (lambda folder: (folder / "optimizer.safetensors").unlink(), "holds 0 of 9 tensors that were saved"),
        (shrink("optimizer.safetensors", "0.exp_avg_sq"), r"0.exp_avg_sq has shape \[1\], not \[3, 5\]"),
        (shrink("trainable.safetensors", "b.lora_A"), r"b.lora_A has shape \[1\], not \[3, 5\]"),
        (shrink("snapshot-ema.safetensors", "a.lora_B"), r"frozen copy ema .* a.lora_B has shape \[1\]"),
        (lose_a_key, "progress.json lacks wall_seconds"),
        (lambda folder: (folder / "progress.json").write_text("{"), "progress.json cannot be read"),
        (lambda folder: (folder / "progress.json").write_text("[]"), "progress.json is not a JSON object but list"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not a JSON object but list"),
        (lambda folder: (folder / "trainable.safetensors").write_text("{"), "trainable.safetensors cannot be read"),
        (recast("trainable.safetensors", "scale", Tensor.long), "trainable.safetensors.* scale has dtype torch.int64"),
        (recast("snapshot-ema.safetensors", "scale", Tensor.half), "snapshot-ema.* scale has dtype torch.float16"),
        (recast("optimizer.safetensors", "0.exp_avg", Tensor.half), "0.exp_avg has dtype torch.float16, not"),
        (recast("optimizer.safetensors", "0.exp_avg_sq", Tensor.neg), "0.exp_avg_sq has a number below zero"),
        (recast("optimizer.safetensors", "0.step", Tensor.neg), "0.step has a number below zero"),
        (rename_a_moment, "optimizer.safetensors: 'step' is not INDEX.NAME"),
        (told(step="2"), "progress.json: step is damaged: input should be a valid integer"),
        (told(step=-5), "progress.json: step is damaged: input should be greater"),
        (told(contents=[1]), "progress.json: contents is damaged"),
        (told(scaling={"factor": -1.0}), "progress.json: scaling.factor is damaged"),
        (seal_another_step, "progress.json: step is 5, but manifest.json says 6"),
    ],
)
def test_a_state_that_lacks_something_or_would_be_stretched_is_refused(
    tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    parameters, optimizer = fresh()
    run_of(parameters, range(3), optimizer)
    snapshots = {"ema": {name: p.detach() for name, p in parameters.items()}}
    write_state(tmp_path, state_of(parameters, optimizer, snapshots))
    check_fits(read_state(tmp_path), parameters, snapshots, moments(optimizer))
    harm(tmp_path / "state")
    with pytest.raises(CheckpointError, match=says):
        check_fits(read_state(tmp_path), parameters, snapshots, moments(optimizer))


@pytest.mark.parametrize("key", TRAJECTORY)
def test_another_trajectory_is_refused(key: str) -> None:
    changed = copy.deepcopy(CONFIG)
    inner = next(iter(CONFIG[key])) if isinstance(CONFIG[key], dict) else None
    was = CONFIG[key][inner] if inner else CONFIG[key]
    if inner:
        changed[key][inner] = "other"
    else:
        changed[key] = "other"
    with pytest.raises(CheckpointError) as raised:
        check_same_run(CONFIG, changed)
    where = f"{key}.{inner}" if inner else key
    assert f'{where} was {json.dumps(was)}, now it is "other"' in str(raised.value)


def test_every_difference_is_named_at_once() -> None:
    changed = copy.deepcopy(CONFIG)
    changed["seed"] = 1
    changed["policy"]["lora"]["rank"] = 8
    changed["objective"]["extra"] = True
    with pytest.raises(CheckpointError) as raised:
        check_same_run(CONFIG, changed)
    for difference in (
        "seed was 0, now it is 1",
        "policy.lora.rank was 4, now it is 8",
        "objective.extra was null, now it is true",
    ):
        assert difference in str(raised.value)


def test_what_does_not_change_the_trajectory_may_change() -> None:
    changed = copy.deepcopy(CONFIG)
    changed.update(name="other", output={"keep": 1}, evaluation={"every": 1}, steps=200, device="cuda", threads=2)
    changed["policy"]["embedding_cache"] = "cache"
    changed["policy"]["lora"]["targets"] = ("to_q",)  # a tuple, as dataclasses hold it
    check_same_run(CONFIG, changed)


def test_a_place_may_change_where_the_content_is_known() -> None:
    changed = copy.deepcopy(CONFIG)
    changed["policy"]["pipeline"], changed["data"]["prompts"] = "elsewhere/base", "b.txt"
    check_same_run(CONFIG, changed, {"policy.pipeline": "1", "data.prompts": "2"})
    with pytest.raises(CheckpointError, match=r"policy.pipeline was .*data.prompts was"):
        check_same_run(CONFIG, changed)  # a checkpoint of before contents were kept


def test_contents_decide() -> None:
    saved = {"data.prompts": "1", "policy.pipeline": "2"}
    check_same_contents(saved, {**saved, "evaluation.prompts": "3"})
    check_same_contents({}, saved)
    with pytest.raises(CheckpointError, match=r"content of data.prompts and policy.pipeline is not"):
        check_same_contents(saved, {"data.prompts": "2", "policy.pipeline": "1"})


def test_the_number_of_steps_counts_where_the_learning_rate_depends_on_it() -> None:
    saved, changed = copy.deepcopy(CONFIG), copy.deepcopy(CONFIG)
    saved["optimizer"]["final"] = changed["optimizer"]["final"] = 0.1
    changed["steps"] = 200
    with pytest.raises(CheckpointError, match="steps was 100, now it is 200"):
        check_same_run(saved, changed)
