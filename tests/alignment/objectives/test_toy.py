"""Preferences and imitation raise the reward on a mixture in the plane, where what should happen is known.

The base scores about -2, its right-hand half alone about -0.4; online DPO was seen at -1.0 after 300 updates. Here it
is as many updates as show it. A method is a line of `METHODS`, and what it promises is in the line. Policy gradients
and the forward-process family are in test_htoy.py beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from alignment.config.run import Data, Optimizer, Snapshots
from alignment.context import Context
from alignment.data.batches import Batch, Experience
from alignment.objectives.base import Objective
from alignment.objectives.forward_process.adpo import ADPO
from alignment.objectives.forward_process.kto import KTO
from alignment.objectives.forward_process.rwr import RWR
from alignment.objectives.forward_process.sft import SFT
from alignment.objectives.preference.dpo import DPO
from alignment.objectives.preference.ipo import IPO
from alignment.objectives.preference.rebel import REBEL
from alignment.objectives.preference.seppo import SePPO
from alignment.sources.base import Source
from alignment.sources.offline import Offline
from alignment.sources.offline_pairs import OfflinePairs
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_pairs import OnPolicyPairs
from alignment.sources.semi_policy import SemiPolicy
from alignment.training.loop import Trainer
from tests.support.toy import (
    GROUPS,
    REWARD,
    fit,
    labelled,
    near_the_right_mode,
    pairs,
    points,
    saved,
    toy_run,
    trainer_of,
)

DRAWN = 500
HOLD = 12  # updates, at half the rate: enough to tell strengths apart
ROWS = 64  # a step of those that learn from a file


@dataclass(frozen=True)
class Method:
    """A pair of source and objective, and what it does.

    Attributes:
        source: Where experience comes from.
        objective: What is minimised.
        updates: Steps.
        gain: Of the reward; the base scores about -2, its right-hand half alone -0.4.
        right: Share of samples on the right-hand side at the end.
        worse: What flipped credit costs in half as many steps; None where credit has no sign to flip.
        data: Writes a data file into a folder, for those that learn from one.
        changes: Other fields of the run.
    """

    source: Source
    objective: Objective
    updates: int = 20
    gain: float = 1.0
    right: float = 0.85
    worse: float | None = None
    data: Callable[[Path], str] | None = None
    changes: Mapping[str, object] = field(default_factory=lambda: {"optimizer": Optimizer(learning_rate=2e-3)})


def samples() -> Source:
    return OnPolicy(GROUPS, REWARD, group_size=24)


def winners(folder: Path) -> str:
    return labelled(folder, wanted=True)


FAST = {"optimizer": Optimizer(learning_rate=4e-3)}
LAST = {**FAST, "snapshots": Snapshots(behaviour=0.0)}  # the behaviour copy is the iterate before
METHODS = {
    "RWR": Method(samples(), RWR()),
    "online KTO": Method(samples(), KTO(beta=5.0), gain=0.5, right=0.65, worse=0.3),
    "online ADPO": Method(samples(), ADPO(temperature=0.3, anchor="behaviour"), changes=LAST, worse=1.0),
    "online DPO": Method(
        OnPolicyPairs(96, REWARD, group_size=4), DPO(beta=5.0), gain=0.5, right=0.6, changes=FAST, worse=0.3
    ),
    "IPO": Method(OnPolicyPairs(96, REWARD, group_size=4), IPO(beta=0.2), gain=0.5, right=0.6, changes=FAST, worse=0.3),
    "REBEL": Method(
        OnPolicyPairs(96, REWARD, group_size=4, strength="difference", weights="behaviour"),
        REBEL(eta=0.1),
        changes=LAST,
        worse=0.5,
    ),
    "DPO": Method(OfflinePairs(ROWS), DPO(beta=5.0), data=pairs, changes=FAST, worse=0.5),
    "KTO": Method(Offline(ROWS, rows_per_group=ROWS), KTO(beta=5.0), data=labelled, changes=FAST, worse=0.5),
    "SFT": Method(Offline(ROWS), SFT(), data=winners, changes=FAST),
    "SePPO": Method(
        SemiPolicy(ROWS, every=5), SePPO(beta=5.0), updates=40, gain=0.5, right=0.6, data=winners, changes=FAST
    ),
}


@dataclass(frozen=True)
class Measured:
    reward: float
    right: float
    spread: float


class Contrary(Trainer):
    """Praises what it should blame."""

    def experience(self, ctx: Context) -> Experience[Batch]:
        found = super().experience(ctx)
        return replace(found, batch=replace(found.batch, advantage=-found.batch.advantage))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=1500)


@pytest.fixture(scope="module")
def base(folder: Path) -> Measured:
    return measured(trainer_of(toy_run(folder, samples(), RWR(), 1)))


def measured(trainer: Trainer) -> Measured:
    media = trainer.policy.generate(("prompt 0",) * DRAWN, torch.arange(DRAWN), {})
    trainer.runtime.close()
    x = points(media.pixels)[:, 0]
    reward = near_the_right_mode(media.pixels, ()).mean().item()
    return Measured(reward, (x > 0).float().mean().item(), x.std().item())


def trained(folder: Path, method: Method, updates: int | None = None, *, contrary: bool = False) -> Measured:
    data = {} if method.data is None else {"data": Data(method.data(folder))}
    run = toy_run(folder, method.source, method.objective, updates or method.updates, **method.changes, **data)
    loaded = trainer_of(run)
    trainer = Contrary(run, loaded.policy, loaded.runtime, loaded.prompts) if contrary else loaded
    fit(trainer)
    return measured(trainer)


def test_the_base_knows_both_modes(base: Measured) -> None:
    assert -2.6 < base.reward < -1.6
    assert 0.4 < base.right < 0.6
    assert base.spread > 1.5


@pytest.mark.parametrize("name", METHODS)
def test_the_reward_rises(folder: Path, base: Measured, name: str) -> None:
    method = METHODS[name]
    found = trained(folder, method)
    assert found.reward > base.reward + method.gain
    assert found.right > method.right


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.worse is not None])
def test_flipped_credit_makes_it_worse(folder: Path, base: Measured, name: str) -> None:
    method = METHODS[name]
    assert method.worse is not None
    found = trained(folder, method, method.updates // 2, contrary=True)
    assert found.reward < base.reward - method.worse
    assert found.right < base.right


# From the weakest hold to the strongest.
HELD: dict[str, Sequence[Objective]] = {
    "online DPO": [DPO(beta=beta) for beta in (1.0, 20.0, 400.0)],
    "DPO": [DPO(beta=beta) for beta in (1.0, 20.0, 400.0)],
    "KTO": [KTO(beta=beta) for beta in (1.0, 20.0, 400.0)],
    "online ADPO": [ADPO(temperature=temperature) for temperature in (3.0, 0.3, 0.03)],
}


@pytest.mark.parametrize("name", HELD)
def test_a_stronger_hold_keeps_the_policy_nearer_to_the_reference(folder: Path, base: Measured, name: str) -> None:
    slower = {**METHODS[name].changes, "optimizer": Optimizer(learning_rate=2e-3)}
    method = replace(METHODS[name], updates=HOLD, changes=slower)
    found = [trained(folder, replace(method, objective=held)) for held in HELD[name]]
    rewards = [one.reward for one in found]
    assert rewards[0] > rewards[1] > rewards[2] > base.reward - 0.1
    assert found[0].spread < found[2].spread
