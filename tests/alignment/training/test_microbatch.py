"""Rows of a microbatch that are measured: a size that a step has, kept by a checkpoint, changing nothing but speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignment.checkpoints.state import read_state
from alignment.config import checks
from alignment.config.run import BatchSettings
from alignment.objectives.base import Objective
from alignment.objectives.forward_process.dgpo import DGPO
from alignment.objectives.forward_process.nft import NFT
from alignment.sources.on_policy import OnPolicy
from alignment.training.microbatch import measured
from alignment.training.runtime.runtime import Runtime
from alignment.training.setup import load
from tests.support.runs import prepared, train
from tests.support.toy import REWARD, fit, saved, toy_run, trainer_of

AUTO = BatchSettings(microbatch="auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=1)


@pytest.mark.parametrize(("objective", "sizes"), [(NFT(), {1, 2, 4, 8, 12}), (DGPO(), {6, 12})])
def test_a_size_that_a_step_has_is_found_and_nothing_is_left_of_looking(
    folder: Path, objective: Objective, sizes: set[int]
) -> None:
    run = toy_run(folder, OnPolicy(2, REWARD, group_size=6), objective, 2, batch=AUTO)
    found = trainer_of(run)
    size = found.run.batch.microbatch
    assert size in sizes
    assert all(p.grad is None for p in found.policy.trainable.values())
    given = trainer_of(replace(run, batch=BatchSettings(microbatch=size)))
    fit(found)
    fit(given)
    for name, parameter in found.policy.trainable.items():
        assert torch.equal(parameter, given.policy.trainable[name])


def test_what_a_checkpoint_knows_is_not_measured_again(folder: Path) -> None:
    run = toy_run(folder, OnPolicy(2, REWARD, group_size=6), NFT(), 2, batch=AUTO)
    assert load(run, Runtime(run), 3).run.batch.microbatch == 3
    given = replace(run, batch=BatchSettings(microbatch=5))
    assert load(given, Runtime(given), 3).run.batch.microbatch == 5


def test_a_pass_that_takes_too_much_memory_ends_the_search(folder: Path) -> None:
    class Greedy(NFT):
        def __call__(self, ctx: object, batch: object, learn: object) -> None:
            if len(batch) > 2:
                raise MemoryError("on purpose")
            super().__call__(ctx, batch, learn)

    run = toy_run(folder, OnPolicy(2, REWARD, group_size=6), Greedy(), 2)
    assert measured(trainer_of(run)) <= 2


def test_it_is_left_open_until_then(folder: Path) -> None:
    run = toy_run(folder, OnPolicy(2, REWARD, group_size=6), DGPO(), 2, batch=AUTO)
    assert not list(checks.values(run))
    assert "at most auto rows" in " ".join(checks.describe(run, 1).split())


def test_a_resumed_run_keeps_what_was_found(flux_folder: Path, tmp_path: Path) -> None:
    work = prepared(tmp_path / "work", flux_folder)
    common = ("evaluation.prompts=null", "output.keep=9")
    assert train(work, "nft", "batch.microbatch=auto", *common, "steps=1") == 0
    assert train(work, "nft", "batch.microbatch=auto", *common, "steps=2", "--resume", "latest") == 0
    first, last = (read_state(work / "runs" / "run" / f"checkpoint-{step}") for step in (1, 2))
    size = first.found["microbatch"]
    assert last.found["microbatch"] == size
    assert train(work, "nft", f"batch.microbatch={size}", *common, "steps=2", "name=given") == 0
    given = read_state(work / "runs" / "given" / "checkpoint-2").trainable
    assert all(torch.equal(last.trainable[name], weight) for name, weight in given.items())
