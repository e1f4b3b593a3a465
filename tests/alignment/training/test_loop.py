"""The loop and the runtime: rows and updates, averaged copies, learning rate, numbers for the record, NaN."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from alignment.config.run import BatchSettings, Optimizer, Snapshots
from alignment.data.batches import Batch, Experience, concatenate
from alignment.errors import ConfigError, EnvironmentProblem, NumericsError
from alignment.objectives.base import Loss, Objective
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.base import Source
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.training.loop import Trainer, ema_decay, microbatches, rows_per_unit, updates
from alignment.training.runtime.averages import Averages
from alignment.training.runtime.runtime import Runtime, learning_rate
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.fraction import Fraction
from tests.support.toy import REWARD, fit, saved, toy_run, trainer_of

STEPS = OnPolicySteps(4, REWARD, FlowSDE(), Fraction(), group_size=4, prompts_per_call=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Trainer]:
    trainer = trainer_of(toy_run(folder, STEPS, ClippedSurrogate(clip=1e-2), 3, batch=BatchSettings(2, 3)))
    yield trainer
    trainer.runtime.close()


def rows(count: int) -> Batch:
    return Batch(("",) * count, torch.arange(count), torch.arange(count), torch.arange(count) // 3)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_updates_share_the_rows_out(trainer: Trainer, count: int) -> None:
    parts = list(updates(trainer.context(0), rows(12), count))
    assert [len(part) for part, _ in parts] == [12 // count] * count
    assert {total for _, total in parts} == {12 // count}
    assert sorted(torch.cat([part for part, _ in parts]).tolist()) == list(range(12))
    if 1 < count:
        assert [p.tolist() for p, _ in parts] != [p.tolist() for p, _ in updates(trainer.context(1), rows(12), count)]


def test_updates_that_do_not_divide_are_refused(trainer: Trainer) -> None:
    with pytest.raises(ConfigError, match="12 / 5 leaves 2 over"):
        list(updates(trainer.context(0), rows(12), 5))


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_microbatches_hold_every_row_once_and_never_mix_pipeline_calls(size: int) -> None:
    batch, chosen = rows(12), torch.tensor([0, 2, 3, 4, 5, 9, 10])
    parts = list(microbatches(batch, chosen, size))
    assert sorted(torch.cat(parts).tolist()) == chosen.tolist()
    assert all(len(part) <= size and len(batch.chunk[part].unique()) == 1 for part in parts)


@dataclass(frozen=True)
class Whole(ClippedSurrogate):
    """One whose losses are of whole groups."""

    whole_groups: ClassVar[bool] = True


def test_groups_stay_whole_where_an_objective_compares_their_samples(trainer: Trainer) -> None:
    batch = replace(rows(24), group=torch.arange(24) // 4, chunk=torch.arange(24) // 12)
    unit = rows_per_unit(Whole(), batch)
    assert unit == 4
    parts = list(updates(trainer.context(0), batch, 3, unit))
    assert {total for _, total in parts} == {8}
    assert sorted(torch.cat([part for part, _ in parts]).tolist()) == list(range(24))
    for part in (piece for mine, _ in parts for size in (4, 7, 100) for piece in microbatches(batch, mine, size, unit)):
        assert (batch.group[part].bincount()[batch.group[part].unique()] == 4).all()
    with pytest.raises(ConfigError, match="groups of a step: 6 / 4 leaves 2 over"):
        list(updates(trainer.context(0), batch, 4, unit))
    with pytest.raises(ConfigError, match="one prompt per call"):
        rows_per_unit(Whole(), replace(batch, chunk=torch.arange(24)))


def test_batches_join_and_part_again(trainer: Trainer) -> None:
    batch = trainer.experience(trainer.context(0)).batch
    first, second = batch[torch.arange(7)], batch[torch.arange(7, len(batch))]
    joined = concatenate([first, second])
    assert joined.prompts == batch.prompts
    assert all(torch.equal(joined[torch.tensor([i])].x, batch[torch.tensor([i])].x) for i in range(len(batch)))


def test_the_first_error_is_that_of_the_first_update_alone(trainer: Trainer) -> None:
    lines = fit(trainer)
    for line in lines:
        assert line["ratio/first_error_max"] <= 1e-6
        assert line["ratio/max"] > 1 + 1e-6  # the second update's
        assert line["updates"] == 2


def test_the_copies_follow_the_weights_as_they_say(folder: Path) -> None:
    settings = Snapshots(ema=0.6, behaviour=0.5, behaviour_rate=0.2)
    source = OnPolicy(4, REWARD, group_size=4, weights="behaviour")
    trainer = trainer_of(toy_run(folder, source, NFT(), 5, snapshots=settings))
    policy = trainer.policy
    start = {name: p.detach().clone() for name, p in policy.trainable.items()}
    expected = {"ema": dict(start), "behaviour": dict(start)}

    def after(step: int, experience: Experience[Batch], metrics: dict[str, float]) -> None:
        decays = {"ema": [0.5, 0.6, 0.6, 0.6, 0.6][step], "behaviour": [0.2, 0.4, 0.5, 0.5, 0.5][step]}
        assert metrics["ema/decay"] == decays["ema"] == ema_decay(trainer.run, step)
        for copy, decay in decays.items():
            for name, p in policy.trainable.items():
                expected[copy][name] = decay * expected[copy][name] + (1 - decay) * p.detach()
                torch.testing.assert_close(policy.snapshots[copy][name], expected[copy][name], rtol=1e-6, atol=1e-7)
            assert not any(torch.equal(policy.snapshots[copy][n], p) for n, p in policy.trainable.items())

    trainer.fit(0, after)
    assert all(torch.equal(policy.snapshots["reference"][name], z) for name, z in start.items())


@pytest.mark.parametrize(
    ("source", "objective"),
    [(STEPS, ClippedSurrogate()), (OnPolicy(4, REWARD, group_size=4, weights="behaviour"), NFT())],
    ids=["steps", "samples"],
)
def test_every_prompt_of_a_step_has_its_whole_group_and_no_other_step_has_its_id(
    folder: Path, source: Source, objective: Objective
) -> None:
    trainer = trainer_of(toy_run(folder, source, objective, 3))
    seen: set[int] = set()
    for step in range(3):
        ids, counts = trainer.experience(trainer.context(step)).batch.group.unique(return_counts=True)
        assert counts.tolist() == [4] * 4
        assert not seen & set(ids.tolist())
        seen |= set(ids.tolist())
    trainer.runtime.close()


@pytest.mark.parametrize("weights", ["live", "behaviour"])
def test_experience_comes_from_the_weights_that_are_asked_for(folder: Path, weights: str) -> None:
    trainer = trainer_of(toy_run(folder, OnPolicy(2, REWARD, group_size=2, weights=weights), NFT(), 1))
    ctx = trainer.context(0)
    before = trainer.experience(ctx).batch.x0
    with torch.no_grad():
        for p in trainer.policy.trainable.values():
            p += 0.1
    assert torch.equal(trainer.experience(ctx).batch.x0, before) == (weights == "behaviour")


def broken(trainer: Trainer, value: float) -> Loss:
    total = sum(p.sum() for p in trainer.policy.trainable.values())
    return Loss((total * value)[None], {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_left_out_and_three_in_a_row_stop(trainer: Trainer, value: float) -> None:
    runtime, policy = trainer.runtime, trainer.policy
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    for _ in range(2):
        runtime.learn(broken(trainer, value), 1)
        runtime.update(1e-3)
        assert all(torch.equal(before[name], p) for name, p in policy.trainable.items())
    assert runtime.metrics()["updates/skipped"] == 1
    runtime.learn(broken(trainer, 1.0), 1)
    runtime.update(1e-3)  # a sound one in between starts the count again
    assert not any(torch.equal(before[name], p) for name, p in policy.trainable.items())
    assert all(p.isfinite().all() for p in policy.trainable.values())
    for _ in range(2):
        runtime.learn(broken(trainer, value), 1)
        runtime.update(1e-3)
    runtime.learn(broken(trainer, value), 1)
    with pytest.raises(NumericsError, match="3 updates in a row") as stopped:
        runtime.update(1e-3)
    assert stopped.value.exit_code == 5


def test_gradients_are_clipped_by_their_global_norm(trainer: Trainer) -> None:
    trainer.runtime._settings = replace(trainer.run.optimizer, max_grad_norm=1e-3)
    trainer.runtime.learn(broken(trainer, 10.0), 1)
    count = sum(p.numel() for p in trainer.policy.trainable.values())
    assert trainer.runtime.update(0.0) == pytest.approx(10 * count**0.5)


def test_weights_without_a_gradient_decay_like_the_others(folder: Path) -> None:
    settings = Optimizer(learning_rate=0.1, weight_decay=0.5)
    trainer = trainer_of(toy_run(folder, STEPS, ClippedSurrogate(), 1, optimizer=settings))
    before = {name: p.detach().clone() for name, p in trainer.policy.trainable.items()}
    trainer.runtime.update(0.1)
    for name, p in trainer.policy.trainable.items():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.1 * 0.5))


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    settings = Optimizer(learning_rate=1.0, warmup=4, final=0.1)
    rates = [learning_rate(settings, step, 11) for step in range(11)]
    assert rates[0] == pytest.approx(0.25)
    assert rates[1] == pytest.approx(0.5 * 0.91)
    assert rates[10] == pytest.approx(0.1)
    assert max(rates) == rates[3]
    assert learning_rate(Optimizer(learning_rate=1.0), 0, 1) == 1.0


def test_numbers_for_the_record_are_means_or_extremes(trainer: Trainer) -> None:
    averages = Averages()
    averages.add({"a": torch.tensor([1.0, 2.0]), "b/max": torch.tensor([[1.0, 5.0]])})
    averages.add({"a": torch.tensor(6.0), "b/max": torch.tensor(2.0)})
    averages.add({"c_min": torch.tensor([4.0, -1.0]), "climax": torch.tensor([1.0, 3.0])})
    assert averages.take(trainer.runtime.world) == {"a": 3.0, "b/max": 5.0, "c_min": -1.0, "climax": 2.0}
    assert averages.take(trainer.runtime.world) == {}
    averages.add({"a": torch.tensor([1.0, torch.nan]), "b/max": torch.tensor([torch.nan, 1.0])})
    assert all(value != value for value in averages.take(trainer.runtime.world).values())


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "torchrun --nproc_per_node N"),
        ({"WORLD_SIZE": "2"}, "asked for 2 processes but 1 met"),
    ],
    ids=["accelerate", "torchrun"],
)
def test_processes_that_did_not_start_are_missed(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: str
) -> None:
    for name, value in environment.items():
        assert name not in os.environ
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentProblem, match=says):
        Runtime(trainer.run)
