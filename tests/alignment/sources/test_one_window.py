"""Calls of a step that train the same steps: rows of several of them share a pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.data.batches import Transitions
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training.loop import Trainer, learn
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.random import Random
from tests.support.toy import REWARD, saved, toy_run, trainer_of

ROUNDING = 1e-5  # of the largest number: float32 with another number of rows, and sums in another order
SOURCE = OnPolicySteps(4, REWARD, FlowSDE(), Random(2), group_size=4, prompts_per_call=1, shared_noise=False)
ROWS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=20)


def sampled(folder: Path, source: OnPolicySteps) -> tuple[Trainer, Transitions]:
    trainer = trainer_of(toy_run(folder, source, ClippedSurrogate(), 1))
    batch = trainer.experience(trainer.context(0)).batch
    assert isinstance(batch, Transitions)
    return trainer, batch


class Kept:
    """A learner that keeps the gradient of the first update, and how many rows each pass had."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.rows, self.gradient = trainer, list[int](), torch.zeros(0)

    def learn(self, loss, rows: int) -> None:
        self.rows.append(len(loss.per_row))
        self.trainer.runtime.learn(loss, rows)

    follow = learn

    def update(self, learning_rate: float) -> float:
        taken = [p.grad.flatten() for p in self.trainer.policy.trainable.values() if p.grad is not None]
        self.gradient = torch.cat(taken)
        return 0.0


def taken(trainer: Trainer, batch: Transitions) -> tuple[Tensor, list[int]]:
    kept = Kept(trainer)
    learn(trainer.run, trainer.context(0), batch, kept)
    trainer.runtime.optimizer.zero_grad()
    return kept.gradient, kept.rows


def test_rows_of_all_calls_share_a_pass_and_learn_the_same(folder: Path) -> None:
    trainer, batch = sampled(folder, replace(SOURCE, one_window=True))
    assert len(batch.index.unique(dim=0)) == 1
    together, rows = taken(trainer, batch)
    assert rows == [ROWS] * 2  # a pass for each trained step
    call_by_call = replace(batch, chunk=torch.arange(ROWS) // SOURCE.group_size)
    apart, pieces = taken(trainer, call_by_call)
    assert pieces == [SOURCE.group_size] * 2 * SOURCE.prompts
    assert together.norm() > 0
    assert (together - apart).norm() <= ROUNDING * apart.norm()


def test_calls_sample_as_they_do_alone(folder: Path) -> None:
    """Only which steps are trained is shared: a call has the rows it has without, in the numbers of rows it had."""
    _, whole = sampled(folder, replace(SOURCE, one_window=True, prompts_per_call=None))
    _, cut = sampled(folder, replace(SOURCE, one_window=True))
    assert torch.equal(whole.index, cut.index)
    assert torch.equal(whole.seeds, cut.seeds)
    assert (whole.x - cut.x).abs().max() <= ROUNDING * whole.x.abs().max()


def test_without_it_every_call_chooses_for_itself(folder: Path) -> None:
    _, batch = sampled(folder, SOURCE)
    assert len(batch.index.unique(dim=0)) > 1
    assert batch.chunk.unique().tolist() == [0, 1, 2, 3]
