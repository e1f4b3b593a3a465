"""Gradients that pass through float16 neither vanish nor end a run, and the scale is part of a run's state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignment.checkpoints.state import TrainState, read_state, write_state
from alignment.errors import NumericsError
from alignment.objectives.base import Loss
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training.loop import Trainer
from alignment.training.runtime.scaling import LEAST, PATIENCE, Scale
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.fraction import Fraction
from tests.support.toy import REWARD, fit, saved, toy_run, trainer_of

HALF = 1e-2  # of a gradient: float16 has 10 bits
EXACT = 1e-6  # the first ratio, of the same rows in the same order
TINY = 1e-9  # below the smallest number of float16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=20)


def trainer(folder: Path, autocast: str | None, steps: int = 2) -> Trainer:
    source = OnPolicySteps(4, REWARD, FlowSDE(), Fraction(0.3), group_size=4)
    run = toy_run(folder, source, ClippedSurrogate(clip=1e-2), steps)
    return trainer_of(replace(run, policy=replace(run.policy, autocast=autocast)))


def loss(made: Trainer, size: float) -> Loss:
    """Return a loss whose gradient comes back through the network as the pipeline computes it."""
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(8, 2, generator=generator), torch.rand(8, generator=generator)
    precision = made.policy.spec.precision
    with torch.autocast("cpu", precision, enabled=precision is not None):
        answer = made.policy.denoiser(x, t)
    return Loss(size * answer.float().sum(dim=1), {})


def test_a_gradient_too_small_for_float16_is_what_it_is_in_float32(folder: Path) -> None:
    norms = []
    for autocast in (None, "float16"):
        made = trainer(folder, autocast)
        made.runtime.learn(loss(made, TINY), 8)
        norms.append(made.runtime.update(1e-3))
    assert norms[1] == pytest.approx(norms[0], rel=HALF)
    made.runtime.scale = Scale(1.0)
    made.runtime.learn(loss(made, TINY), 8)
    assert made.runtime.update(1e-3) == 0.0  # as it would be without


def test_too_large_a_scale_costs_updates_and_not_the_run(folder: Path) -> None:
    made = trainer(folder, "float16")
    made.runtime.scale = Scale(2.0**40)
    before = {name: p.detach().clone() for name, p in made.policy.trainable.items()}
    skipped = 0
    while all(torch.equal(p, before[name]) for name, p in made.policy.trainable.items()):
        made.runtime.learn(loss(made, 1.0), 8)
        made.runtime.update(1e-3)
        skipped += 1
    told = made.runtime.metrics()
    assert skipped > 3
    assert told["updates/skipped"] == pytest.approx((skipped - 1) / skipped)
    assert made.runtime.scale == Scale(2.0 ** (40 - skipped + 1), 1)
    assert told["grad/scale"] >= made.runtime.scale.factor


def test_gradients_that_are_not_finite_at_any_scale_end_the_run(folder: Path) -> None:
    made = trainer(folder, "float16")
    made.runtime.scale = Scale(2.0)
    for _ in range(3):
        made.runtime.learn(loss(made, float("nan")), 8)
        made.runtime.update(1e-3)
    assert made.runtime.scale.factor == LEAST
    made.runtime.learn(loss(made, float("nan")), 8)
    with pytest.raises(NumericsError, match="3 updates in a row"):
        made.runtime.update(1e-3)


def test_a_scale_grows_after_many_sound_updates() -> None:
    scale = Scale(4.0)
    for _ in range(PATIENCE):
        scale.learned(finite=True)
    assert scale == Scale(8.0, 0)
    scale.learned(finite=True)
    scale.learned(finite=False)
    assert scale == Scale(4.0, 0)


def test_the_first_ratio_is_one_in_float16(folder: Path) -> None:
    for line in fit(trainer(folder, "float16")):
        assert line["ratio/first_error_max"] <= EXACT
        assert line["grad/scale"] == 2.0**16


def test_a_scale_comes_back(tmp_path: Path) -> None:
    weights = {"w": torch.ones(2)}
    write_state(tmp_path, TrainState(1, weights, {"0.step": torch.ones(())}, {}, 0.0, {}, scaling=vars(Scale(8.0, 3))))
    assert Scale(**read_state(tmp_path).scaling) == Scale(8.0, 3)
