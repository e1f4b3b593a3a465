"""Every rule of an update is torch's or torchao's, and a run that is put away with it is the run that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import torchao.optim
from torch import Tensor, nn

from alignment.checkpoints.state import TrainState, check_fits, read_state, restore, write_state
from alignment.config.run import Optimizer
from alignment.errors import ConfigError
from alignment.training.runtime import optimizers
from alignment.training.runtime.offloaded import Offloaded

TYPES = get_args(get_type_hints(Optimizer)["type"])
SHAPES = {"wide": (20, 256), "small": (3, 5), "odd": (80, 60)}
RATE, DECAY, STEPS = 1e-2, 0.1, 4


def weights_of(kind: str) -> dict[str, nn.Parameter]:
    shapes: dict[str, tuple[int, ...]] = SHAPES if kind == "muon" else {**SHAPES, "bias": (300,), "conv": (4, 3, 2, 2)}
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def learn(weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        give_gradients(weights, step)
        optimizers.step(optimizer, RATE)


def give_gradients(weights: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=generator)


def library(kind: str, weights: dict[str, nn.Parameter]) -> Any:
    """Return the rule as its library makes it, which keeps nothing yet."""
    own = list(weights.values())
    match kind:
        case "adamw":
            return torch.optim.AdamW(own, RATE, weight_decay=DECAY)
        case "adamw8bit":
            return torchao.optim.AdamW8bit(own, RATE, weight_decay=DECAY)
        case "adafactor":
            return torch.optim.Adafactor(own, RATE, weight_decay=DECAY)
        case _:
            return torch.optim.Muon(own, RATE, DECAY, adjust_lr_fn="match_rms_adamw")


def moments(
    settings: Optimizer, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return optimizers.moments(settings, list(weights.values()), optimizer.state)


@pytest.mark.parametrize("kind", TYPES)
def test_an_update_is_the_librarys(kind: str) -> None:
    ours, theirs = weights_of(kind), weights_of(kind)
    if kind == "adamw8bit":  # torchao's blocks go from row to row, which processes do not
        del ours["odd"], theirs["odd"]
    made = optimizers.make(Optimizer(RATE, kind, weight_decay=DECAY), ours)
    other = library(kind, theirs)
    kept = {name: {key: z.shape for key, z in made.state[weight].items()} for name, weight in ours.items()}
    learn(ours, made, range(STEPS))
    learn(theirs, other, range(STEPS))
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name
        assert kept[name] == {key: z.shape for key, z in other.state[weight].items()}


@pytest.mark.parametrize("kind", TYPES)
def test_a_state_comes_back_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    settings = Optimizer(RATE, kind, weight_decay=DECAY)
    straight = weights_of(kind)
    optimizer = optimizers.make(settings, straight)
    learn(straight, optimizer, range(STEPS))
    kept = moments(settings, straight, optimizer)
    before = {name: weight.detach().clone() for name, weight in straight.items()}
    write_state(tmp_path, TrainState(STEPS, before, kept, {}, 0.0, {}))
    learn(straight, optimizer, range(STEPS, 2 * STEPS))

    resumed = weights_of(kind)
    optimizer = optimizers.make(settings, resumed)
    state, here = read_state(tmp_path), moments(settings, resumed, optimizer)
    check_fits(state, resumed, {}, here)
    restore(state, resumed, {}, here)
    learn(resumed, optimizer, range(STEPS, 2 * STEPS))
    for name, weight in straight.items():
        assert torch.equal(resumed[name], weight), name


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_kept_is_counted_without_weights(kind: str) -> None:
    settings, weights = Optimizer(RATE, kind), weights_of(kind)
    kept = moments(settings, weights, optimizers.make(settings, weights))
    held = sum(z.nbytes for name, z in kept.items() if not name.endswith(".step"))
    assert held == sum(optimizers.size(settings, weight.detach().to("meta")) for weight in weights.values())


def test_eight_bits_take_a_quarter() -> None:
    weight = torch.empty(64, 1024, device="meta")
    eight, full = (optimizers.size(Optimizer(type=kind), weight) for kind in ("adamw8bit", "adamw"))
    assert full / 4 < eight < 1.02 * full / 4  # and a scale for each 256


def test_muon_is_for_matrices() -> None:
    with pytest.raises(
        ConfigError, match=r"muon makes matrices orthogonal, and bias has shape \[300\] \(2 of 5 trained"
    ):
        optimizers.make(Optimizer(type="muon"), weights_of("adamw"))


@pytest.mark.parametrize("kind", TYPES)
def test_updates_in_main_memory_are_the_same(kind: str) -> None:
    settings = Optimizer(RATE, kind, weight_decay=DECAY)
    here, there = weights_of(kind), weights_of(kind)
    optimizer, offloaded = optimizers.make(settings, here), Offloaded.of(there)
    other = optimizers.make(settings, offloaded.copies)
    for step in range(STEPS):
        for weights in (here, there):
            give_gradients(weights, step)
        optimizers.step(optimizer, RATE)
        offloaded.bring()
        assert all(weight.grad is None for weight in there.values())
        optimizers.step(other, RATE)
        offloaded.give_back()
        with torch.no_grad():  # something else changes the weights, as a copy of them that samples does for a while
            for weight in (*here.values(), *there.values()):
                weight.add_(1.0)
    for name, weight in here.items():
        assert torch.equal(there[name], weight), name
    own, others = moments(settings, here, optimizer), moments(settings, dict(offloaded.copies), other)
    assert all(torch.equal(others[name], moment) for name, moment in own.items())
    assert not any(weight in other.state for weight in there.values())
