"""Scoring beside sampling: the same scores, in a thread that knows what it needs to, and errors that are not lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from reward_models.base import RewardError
from reward_models.combinators.function import Function
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.fraction import Fraction
from tests.support.toy import REWARD, saved, toy_run, trainer_of

SOURCES = {
    "steps": (OnPolicySteps(4, REWARD, FlowSDE(), Fraction(), group_size=4, prompts_per_call=1), ClippedSurrogate()),
    "clean": (OnPolicy(4, REWARD, group_size=4, prompts_per_call=1), NFT()),
}
asked: list[tuple[str, bool, int, int]] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=20)


def witness(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    asked.append((threading.current_thread().name, torch.is_grad_enabled(), torch.get_num_threads(), len(prompts)))
    return pixels.mean((1, 2, 3, 4))


def fails_at_once(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    asked.append(("", False, 0, len(prompts)))
    raise LookupError("no judge")


def experience(folder: Path, kind: str, **changes: object):
    source, objective = SOURCES[kind]
    trainer = trainer_of(toy_run(folder, replace(source, **changes), objective, 1))
    try:
        return trainer.experience(trainer.context(0))
    finally:
        trainer.runtime.close()


@pytest.mark.parametrize("kind", SOURCES)
def test_overlapping_changes_nothing(folder: Path, kind: str) -> None:
    one, other = (experience(folder, kind, overlap=overlap) for overlap in ("always", False))
    assert torch.equal(one.rewards.value, other.rewards.value)
    assert torch.equal(one.batch.advantage, other.batch.advantage)
    assert one.metrics == other.metrics
    assert {"rollout", "reward", "scoring"} <= one.seconds.keys()


@dataclass(frozen=True)
class Waiting(Function):
    """A function that waits for a server."""

    def waits(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("reward", "overlap", "beside"),
    [
        (Function, False, False),
        (Function, True, False),  # it computes on these cores: a second team of threads would halve their speed
        (Function, "always", True),
        (Waiting, False, False),
        (Waiting, True, True),
    ],
)
def test_a_thread_of_its_own_is_for_what_waits_and_has_no_team(
    folder: Path, reward: type[Function], overlap: bool | Literal["always"], beside: bool
) -> None:
    asked.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        experience(folder, "clean", reward=reward(f"{__name__}:witness"), overlap=overlap)
    finally:
        torch.set_num_threads(threads)
    names, grads, counts, sizes = zip(*asked, strict=True)
    assert len(set(names)) == 1
    assert (names[0] != threading.current_thread().name) == beside
    assert (set(grads), set(counts), sizes) == ({False}, {1 if beside else threads + 1}, (4, 4, 4, 4))


@pytest.mark.parametrize("overlap", ["always", True, False])
def test_a_failure_is_raised(folder: Path, overlap: bool | Literal["always"]) -> None:
    asked.clear()
    with pytest.raises(RewardError, match="fails_at_once raised LookupError"):
        experience(folder, "clean", reward=Function(f"{__name__}:fails_at_once"), overlap=overlap)
    assert overlap == "always" or len(asked) == 1
