"""Learning from the best and the worst of each group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from alignment.data.batches import Transitions
from alignment.errors import ConfigError
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training.loop import Trainer
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.base import Window
from samplers.windows.branch import Branch
from samplers.windows.random import Random
from tests.support.toy import REWARD, fit, saved, toy_run, trainer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture
def trainers(folder: Path) -> Iterator[list[Trainer]]:
    made: list[Trainer] = []
    yield made
    for trainer in made:
        trainer.runtime.close()


def steps(window: Window, keep: int | None) -> OnPolicySteps:
    return OnPolicySteps(3, REWARD, FlowSDE(), window, group_size=8, keep=keep)


@pytest.mark.parametrize("window", [Branch((1,)), Random()], ids=["one row a group", "one row a sample"])
def test_the_best_and_the_worst_of_each_group_stay_with_what_belongs_to_them(
    folder: Path, trainers: list[Trainer], window: Window
) -> None:
    for keep in (None, 4):
        trainers.append(trainer_of(toy_run(folder, steps(window, keep), ClippedSurrogate(), 1)))
    whole, some = (trainer.experience(trainer.context(0)) for trainer in trainers)
    assert isinstance(whole.batch, Transitions)
    assert isinstance(some.batch, Transitions)
    assert torch.equal(whole.rewards.value, some.rewards.value)  # all are scored
    credit, kept = whole.batch.advantage.view(3, 8), some.batch.advantage.view(3, 4)
    expected = credit.sort(dim=1).values[:, [0, 1, 6, 7]]
    assert torch.equal(kept.sort(dim=1).values, expected)
    actions = whole.batch.x_next[:, 0].reshape(3, 8, -1)
    for group, one in enumerate(some.batch.x_next[:, 0].reshape(3, 4, -1)):
        for row, action in enumerate(one):
            (where,) = (actions[group] == action).all(dim=1).nonzero().flatten().tolist()
            assert credit[group, where] == kept[group, row]


def test_clean_samples_are_chosen_alike(folder: Path, trainers: list[Trainer]) -> None:
    trainers.append(trainer_of(toy_run(folder, OnPolicy(3, REWARD, group_size=8, keep=2), NFT(), 2)))
    (trainer,) = trainers
    found = trainer.experience(trainer.context(0))
    assert len(found.batch) == 6
    rewards = found.rewards.value.view(3, 8)
    chosen = torch.stack([rewards.argmin(dim=1), rewards.argmax(dim=1)], dim=1).sort(dim=1).values
    rows = (chosen + 8 * torch.arange(3)[:, None]).flatten()
    everyone = trainer.context(0).draw.keys("initial noise", torch.arange(24))
    assert torch.equal(found.batch.seeds, everyone[rows])
    assert all(line["rows"] == 6 for line in fit(trainer))


@pytest.mark.parametrize("keep", [0, 3, 10])
def test_what_is_not_half_best_and_half_worst_is_refused(keep: int) -> None:
    with pytest.raises(ConfigError, match=f"even number from 2 to group_size 8, .* got {keep}"):
        steps(Random(), keep)


@pytest.mark.parametrize("tail", [0, 0.0, 1.5, -1])
def test_a_tail_is_a_number_of_calls_or_a_share(tail: float) -> None:
    with pytest.raises(ConfigError, match="a number of denoiser calls, or a share"):
        OnPolicySteps(3, REWARD, FlowSDE(), Random(), tail=tail)
