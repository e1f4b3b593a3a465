"""Scouts: what is chosen, what is made of it, and what credit the chosen get."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.config.refusals import rollouts
from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.data.batches import Transitions
from alignment.errors import ConfigError
from alignment.objectives.forward_process.dgpo import DGPO
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.objectives.preference.dpo import DPO
from alignment.sources.base import Source
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_pairs import OnPolicyPairs
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.scouting.scout import Cheaply, Scout
from alignment.sources.scouting.selection import Selection, chosen, rank_correlation
from alignment.training.loop import Trainer
from reward_models.base import Rewards
from reward_models.combinators.win_rate import WinRate
from reward_models.judges.bradley_terry import BradleyTerry
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.branch import Branch
from samplers.windows.random import Random
from tests.support.toy import REWARD, STEPS, fit, saved, toy_run, trainer_of

CANDIDATES, GROUP = 12, 4
DRAWN, KEPT = 40_000, 10_000
ESTIMATE = 0.03
"""Of a moment of 10,000 samples: three standard errors, which are below 1 % of a number near 1."""
ROWS = 1e-4
"""A matrix product rounds otherwise with another number of rows, ten steps carry that on; points are of order one."""
FEW = Cheaply(call={"num_inference_steps": 4})
ALIKE = Cheaply(call={"num_inference_steps": STEPS})
"""As costly as a sample: then a scout is the sample itself."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=100)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Callable[..., Trainer]]:
    made: list[Trainer] = []

    def make(source: Source, objective: object = NFT(), steps: int = 1) -> Trainer:
        made.append(trainer_of(toy_run(folder, source, objective, steps)))
        return made[-1]

    yield make
    for each in made:
        each.runtime.close()


def extremes_of(scores: Tensor) -> Tensor:
    """Return the two best and the two worst of each group, in order."""
    return scores.view(-1, CANDIDATES).sort(dim=1).values[:, [0, 1, -2, -1]]


def assert_extremes(found: Rewards, every: Rewards) -> None:
    expected = extremes_of(every.value)
    torch.testing.assert_close(found.value.view(expected.shape).sort(dim=1).values, expected, atol=ROWS, rtol=0)


def test_the_best_and_the_worst_scouts_are_made_from_their_own_noise(trainer: Callable[..., Trainer]) -> None:
    whole = trainer(OnPolicy(3, REWARD, group_size=CANDIDATES))
    some = trainer(OnPolicy(3, REWARD, group_size=GROUP, scout=Scout(CANDIDATES, ALIKE, keep=GROUP)))
    every, found = (each.experience(each.context(0)) for each in (whole, some))
    assert_extremes(found.rewards, every.rewards)
    for seed, x0 in zip(found.batch.seeds, found.batch.x0, strict=True):
        (row,) = (every.batch.seeds == seed).nonzero().flatten().tolist()
        torch.testing.assert_close(x0, every.batch.x0[row], atol=ROWS, rtol=0)
    assert found.metrics["scout/rank_correlation"] == pytest.approx(1.0)
    assert found.metrics["scout/mean"] == pytest.approx(every.rewards.value.mean().item())
    assert 0 < found.metrics["scout/time_share"] < 1


@pytest.mark.parametrize("window", [Branch((1,)), Random()], ids=["one row a group", "one row a sample"])
def test_scouts_with_a_tail_are_their_samples_up_to_it(trainer: Callable[..., Trainer], window: object) -> None:
    def source(group_size: int, scout: Scout | None) -> OnPolicySteps:
        return OnPolicySteps(3, REWARD, FlowSDE(), window, group_size=group_size, tail=0.9, scout=scout)

    whole = trainer(source(CANDIDATES, None), ClippedSurrogate())
    some = trainer(source(GROUP, Scout(CANDIDATES, Cheaply(tail=0.9))), ClippedSurrogate())
    every, found = (each.experience(each.context(0)) for each in (whole, some))
    assert_extremes(found.rewards, every.rewards)
    assert isinstance(every.batch, Transitions)
    assert isinstance(found.batch, Transitions)
    actions = every.batch.x_next[:, 0].reshape(3, CANDIDATES, -1)
    for group, kept in enumerate(found.batch.x_next[:, 0].reshape(3, GROUP, -1)):
        assert all((actions[group] - action).abs().amax(dim=1).min() < ROWS for action in kept)


def test_cheaper_scouts_cost_less_and_say_less(trainer: Callable[..., Trainer]) -> None:
    sources = [
        OnPolicy(8, REWARD, group_size=8, scout=Scout(32, Cheaply(call={"num_inference_steps": steps})))
        for steps in (1, 6)
    ]
    one, many = (each.experience(each.context(0)).metrics for each in map(trainer, sources))
    assert one["scout/rank_correlation"] < many["scout/rank_correlation"] < 1
    assert many["scout/rank_correlation"] > 0.8
    assert 0.3 < many["scout/spread"] < 1


def test_what_scouts_find_depends_on_step_and_weights_alone(trainer: Callable[..., Trainer]) -> None:
    source = OnPolicy(3, REWARD, group_size=GROUP, scout=Scout(CANDIDATES, FEW))
    trained, fresh = trainer(source, steps=3), trainer(source, steps=3)
    fit(trained)
    for name, parameter in fresh.policy.trainable.items():
        parameter.data.copy_(trained.policy.trainable[name].data)
    one, other = (each.experience(each.context(7)) for each in (trained, fresh))
    assert torch.equal(one.batch.x0, other.batch.x0)
    assert torch.equal(one.batch.advantage, other.batch.advantage)


def test_pairs_are_of_scouts_too(trainer: Callable[..., Trainer]) -> None:
    source = OnPolicyPairs(3, REWARD, group_size=2, scout=Scout(CANDIDATES, ALIKE))
    paired = trainer(source, DPO())
    made = paired.experience(paired.context(0))
    whole = trainer(OnPolicy(3, REWARD, group_size=CANDIDATES))
    every = whole.experience(whole.context(0)).rewards.value
    pairs = made.rewards.value.view(3, 2).sort(dim=1).values
    torch.testing.assert_close(pairs, extremes_of(every)[:, [0, 3]], atol=ROWS, rtol=0)


# ---- credit ----------------------------------------------------------------------------------------------------------


class Centred(Advantage):
    """Scores without their mean, in their own units."""

    def __call__(self, rewards: Rewards, group: Tensor) -> Tensor:
        return rewards.value - rewards.value.mean()


@pytest.mark.parametrize("quality", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("normalised", [True, False])
def test_selection_inflates_the_gradient_as_theory_says_and_the_correction_takes_it_back(
    quality: float, normalised: bool
) -> None:
    """The policy is N(theta, 1), the reward its sample x, so that d log p / d theta = x and the true gradient is 1.

    Of candidates beyond +-c of the scouts' scores, the share p on each side, scores of the scouts have the variance
    1 + c phi(c) / p, and rewards that correlate with them by q have 1 + q^2 c phi(c) / p.
    """
    draw = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, DRAWN, generator=draw)
    scouts = quality * x + math.sqrt(1 - quality**2) * noise
    kept = chosen(scouts[None], KEPT)[0]
    normal, share = torch.distributions.Normal(0.0, 1.0), KEPT / 2 / DRAWN
    c = normal.icdf(torch.tensor(1 - share))
    variance = 1 + quality**2 * (c * normal.log_prob(c).exp() / share).item()
    advantage: Advantage = GroupNorm(limit=math.inf) if normalised else Centred()
    rewards, group = Rewards(x[kept]), torch.zeros(KEPT, dtype=torch.int64)
    every = scouts.var(correction=0).expand(KEPT)
    gradient = {
        correct: (Selection(scouts[kept], every, every, correct).credit(advantage, rewards, group) * x[kept]).mean()
        for correct in (False, True)
    }
    inflated = math.sqrt(variance) if normalised else variance
    assert gradient[False].item() == pytest.approx(inflated, rel=ESTIMATE)
    assert gradient[True].item() == pytest.approx(1.0, rel=ESTIMATE)
    assert quality == 0 or inflated > 1 + 3 * ESTIMATE


def test_the_correction_takes_groups_one_by_one_and_leaves_ties_and_unscored_alone() -> None:
    score = torch.tensor([0.0, 1.0, 3.0, 4.0, 2.0, 2.0, 2.0, 2.0, 1.0, 2.0, 3.0, torch.nan])
    value = torch.tensor([0.0, 1.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0])
    group = torch.arange(3).repeat_interleave(4)
    selection = Selection(score, torch.tensor([1.0, 0.0, 0.5]).repeat_interleave(4), score, correct=True)
    plain, corrected = GroupNorm()(Rewards(value), group), selection.credit(GroupNorm(), Rewards(value), group)
    assert torch.allclose(corrected[:4], plain[:4] * math.sqrt(1 / 2.5), rtol=1e-6)  # var 2.5, of all candidates 1
    assert torch.equal(corrected[4:8], plain[4:8])  # scouts that tie say nothing
    assert torch.equal(corrected[8:], torch.zeros(4))


def test_a_scout_without_a_score_stands_in_the_middle() -> None:
    scores = torch.tensor([[torch.nan, 5.0, 1.0, 4.0, 2.0, 3.0], [torch.nan] * 6])
    assert chosen(scores, 4).tolist() == [[1, 2, 3, 4], [0, 1, 4, 5]]


def test_rank_correlation_is_that_of_ranks_within_groups() -> None:
    one = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0, 30.0, 20.0, 5.0, 5.0, torch.nan])
    other = torch.tensor([1.0, 8.0, 9.0, 90.0, 3.0, 1.0, 2.0, 1.0, 2.0, 0.0])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert rank_correlation(one, other, group) == pytest.approx((1.0 - 1.0) / 2)
    assert rank_correlation(one[:4], other[:4], group[:4]) == pytest.approx(1.0)
    assert math.isnan(rank_correlation(one[7:], other[7:], group[7:]))


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Scout(1, FEW), "candidates: got 1: one scout is not compared with any"),
        (lambda: OnPolicy(3, REWARD, scout=Scout(8, FEW)), "got 8, and 8 of them are made anew"),
        (lambda: OnPolicy(3, REWARD, scout=Scout(4, FEW)), "got 4, and 8 of them are made anew"),
        (lambda: OnPolicy(3, REWARD, scout=Scout(24, FEW, keep=6)), "got 6, and group_size is 8"),
        (lambda: OnPolicy(3, REWARD, group_size=3, scout=Scout(24, FEW)), "group_size 3 is odd"),
        (lambda: OnPolicy(3, REWARD, keep=4, scout=Scout(24, FEW)), "before they are made; leave keep out"),
        (lambda: Cheaply(), "give call, tail or cache"),
        (lambda: Cheaply(call={"num_inference_steps": 2}, tail=1), "give call or tail"),
        (lambda: Cheaply(call={"height": 8}), r"call.height: initial noise of another size is other noise"),
        (lambda: Cheaply(tail=1.5), "a share above 0 and up to 1.0, got 1.5"),
        (
            lambda: OnPolicySteps(3, REWARD, FlowSDE(), Random(), scout=Scout(24, FEW)),
            "so that all would be alike; use scout.how.tail",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("source", "objective", "key", "says"),
    [
        (
            OnPolicy(3, REWARD, scout=Scout(24, FEW)),
            DGPO(),
            "source.scout",
            "DGPO takes the samples of a group for all",
        ),
        (
            OnPolicy(3, WinRate(BradleyTerry(REWARD)), scout=Scout(24, FEW)),
            NFT(),
            "source.scout",
            "scores a sample against its group",
        ),
        (OnPolicy(3, REWARD, scout=Scout(24, Cheaply(tail=1))), NFT(), "source.scout.how.tail", "have no window"),
        (
            OnPolicy(3, REWARD, scout=Scout(24, Cheaply(call={"num_inference_steps": STEPS + 1}))),
            NFT(),
            "source.scout.how.call.num_inference_steps",
            f"expected a number from 1 to the {STEPS}",
        ),
    ],
)
def test_what_scouts_do_not_go_with_is_refused_before_anything_is_loaded(
    tmp_path: Path, source: Source, objective: object, key: str, says: str
) -> None:
    ((where, message),) = rollouts.problems(toy_run(tmp_path, source, objective, 1))
    assert where == key
    assert says in message
