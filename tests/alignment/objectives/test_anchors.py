"""What gains are counted from: frozen copies that follow the policy now and then, or when a metric has grown."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from alignment.config.run import Optimizer, Snapshots
from alignment.errors import ConfigError
from alignment.objectives.base import Objective
from alignment.objectives.forward_process.adpo import ADPO
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.preference.dpo import DPO
from alignment.objectives.preference.ipo import IPO
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_pairs import OnPolicyPairs
from tests.support.toy import REWARD, fit, saved, toy_run, trainer_of

PAIRS = OnPolicyPairs(16, REWARD, group_size=4)
FAST = Optimizer(learning_rate=2e-3)
AT_REST = 1e-6  # of a loss or a divergence where policy and anchor are one: errors cancel to float32 rounding
FAR = 0.02  # of ADPO's divergence from its anchor, reached in two or three steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.mark.parametrize(
    ("objective", "rest"),
    [(DPO(beta=500.0, anchor="behaviour"), math.log(2)), (IPO(beta=50.0, anchor="behaviour"), 0.25)],
    ids=["DPO", "IPO"],
)
def test_a_reference_may_be_refreshed_every_so_many_steps(folder: Path, objective: Objective, rest: float) -> None:
    """The loss is that of no gain again whenever the reference has become the policy itself."""
    settings = Snapshots(behaviour=0.0, every=3)
    lines = fit(trainer_of(toy_run(folder, PAIRS, objective, 8, snapshots=settings, optimizer=FAST)))
    at_rest = [abs(line["loss"] - rest) < AT_REST for line in lines]
    assert at_rest == [step % 3 == 0 for step in range(8)]


def test_an_anchor_may_be_refreshed_when_the_policy_has_moved_away(folder: Path) -> None:
    """ADPO's: nothing apart right after a refresh, and further apart from then on."""
    settings = Snapshots(behaviour=0.0, above={"kl/anchor": FAR})
    objective = ADPO(temperature=0.3, anchor="behaviour")
    run = toy_run(folder, OnPolicy(4, REWARD, group_size=8), objective, 16, snapshots=settings, optimizer=FAST)
    apart = [line["kl/anchor"] for line in fit(trainer_of(run))]
    refreshed = {0, *(step + 1 for step, moved in enumerate(apart[:-1]) if moved > FAR)}
    assert 2 < len(refreshed) < 12
    assert {step for step, moved in enumerate(apart) if moved < AT_REST} == refreshed


def test_a_copy_that_waits_for_a_metric_that_is_not_there_is_an_error(folder: Path) -> None:
    settings = Snapshots(above={"kl/other": 0.1})
    run = toy_run(folder, OnPolicy(4, REWARD, group_size=4, weights="behaviour"), NFT(), 2, snapshots=settings)
    with pytest.raises(ConfigError, match=r"snapshots.above: the run has no metric kl/other; step 0 has .*grad/norm"):
        fit(trainer_of(run))
