"""What every advantage keeps; a new file in `alignment/credit/advantages/` is tested without being named here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignment.config import registry
from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.batch_norm import BatchNorm
from alignment.credit.advantages.group_norm import GroupNorm
from reward_models.base import Rewards

ALL = [registry.find(Advantage, name)() for name in registry.known(Advantage)]

SUM = 1e-4  # float32 credits of up to 40 samples
DELTA = 5e-3  # a delta of 1e-4 beside a spread of at least 0.15 moves credits of size 5 by less
CLAMPED = 4.99  # credits near the limit were cut, and no longer sum to 0

# Scores on a grid: spreads are 0 or well above any delta.
scores = st.integers(-40, 40).map(float)
groups = st.lists(st.lists(scores, min_size=2, max_size=8), min_size=1, max_size=5)


def rows(drawn: list[list[float]]) -> tuple[Tensor, Tensor]:
    value = torch.tensor([score for one in drawn for score in one])
    # Large ids, in no order.
    return value, torch.tensor([2**62 - 7 * g * g for g, one in enumerate(drawn) for _ in one])


@pytest.fixture(params=ALL, ids=lambda advantage: type(advantage).__name__)
def advantage(request: pytest.FixtureRequest) -> Advantage:
    return request.param


@given(drawn=groups)
@pytest.mark.parametrize("advantage", ALL, ids=lambda advantage: type(advantage).__name__)
def test_credits_of_a_group_sum_to_zero(advantage: Advantage, drawn: list[list[float]]) -> None:
    value, group = rows(drawn)
    credit = advantage(Rewards(value), group)
    assert credit.shape == value.shape
    assert credit.dtype == torch.float32
    assume(credit.abs().max() < CLAMPED)
    for one in group.unique():
        assert abs(credit[group == one].sum()) < SUM


@given(drawn=groups, seed=st.integers(0, 2**32))
@pytest.mark.parametrize("advantage", ALL, ids=lambda advantage: type(advantage).__name__)
def test_the_order_of_samples_does_not_matter(advantage: Advantage, drawn: list[list[float]], seed: int) -> None:
    value, group = rows(drawn)
    order = torch.randperm(len(value), generator=torch.Generator().manual_seed(seed))
    shuffled = advantage(Rewards(value[order]), group[order])
    torch.testing.assert_close(shuffled, advantage(Rewards(value), group)[order])


@given(drawn=groups, scale=st.floats(1, 10), shift=st.floats(-100, 100))
@pytest.mark.parametrize("advantage", ALL, ids=lambda advantage: type(advantage).__name__)
def test_scale_and_zero_of_the_reward_do_not_matter(
    advantage: Advantage, drawn: list[list[float]], scale: float, shift: float
) -> None:
    value, group = rows(drawn)
    credit, moved = (advantage(Rewards(v), group) for v in (value, scale * value + shift))
    assert (moved - credit).abs().max() < DELTA


@given(drawn=groups, tie=scores, size=st.integers(2, 8))
@pytest.mark.parametrize("advantage", ALL, ids=lambda advantage: type(advantage).__name__)
def test_a_group_that_ties_gets_exactly_nothing(
    advantage: Advantage, drawn: list[list[float]], tie: float, size: int
) -> None:
    value, group = rows([*drawn, [tie / 3] * size])
    assert torch.equal(advantage(Rewards(value), group)[-size:], torch.zeros(size))


@given(drawn=groups, data=st.data())
@pytest.mark.parametrize("advantage", ALL, ids=lambda advantage: type(advantage).__name__)
def test_an_unscored_sample_gets_nothing_and_changes_nothing(
    advantage: Advantage, drawn: list[list[float]], data: st.DataObject
) -> None:
    value, group = rows(drawn)
    unscored = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(value), max_size=len(value))))
    holed = torch.where(unscored, torch.nan, value)
    credit = advantage(Rewards(holed), group)
    assert torch.equal(credit[unscored], torch.zeros(int(unscored.sum())))
    assert torch.equal(credit[~unscored], advantage(Rewards(value[~unscored]), group[~unscored]))


@pytest.mark.parametrize("value", [[1e30, -1e30, 2e30], [1e-30, -1e-30, 2e-30], [3e38, -3e38, 0.0], [1e-45, 0.0, 0.0]])
def test_huge_and_tiny_rewards_give_finite_credit(advantage: Advantage, value: list[float]) -> None:
    credit = advantage(Rewards(torch.tensor(value)), torch.zeros(3, dtype=torch.int64))
    assert credit.isfinite().all()


def test_a_group_of_one_and_no_sample_at_all_are_no_error(advantage: Advantage) -> None:
    assert torch.equal(advantage(Rewards(torch.tensor([3.0])), torch.tensor([1])), torch.zeros(1))
    nothing = advantage(Rewards(torch.zeros(0)), torch.zeros(0, dtype=torch.int64))
    assert nothing.shape == (0,)
    all_unscored = advantage(Rewards(torch.full((4,), torch.nan)), torch.tensor([1, 1, 2, 2]))
    assert torch.equal(all_unscored, torch.zeros(4))


@settings(max_examples=20)
@given(first=st.integers(0, 2**62 - 1))
@pytest.mark.parametrize("advantage", ALL, ids=lambda advantage: type(advantage).__name__)
def test_ids_that_differ_by_one_are_two_groups_whatever_their_size(advantage: Advantage, first: int) -> None:
    ids = torch.tensor([first, first, first + 1, first + 1])
    credit = advantage(Rewards(torch.tensor([0.0, 1.0, 10.0, 11.0])), ids)
    assert torch.equal(credit[:2], credit[2:])
    assert credit[1] > 0


def test_golden_z_scores() -> None:
    rewards, group = Rewards(torch.tensor([1.0, 2.0, 4.0, 5.0])), torch.zeros(4, dtype=torch.int64)
    unbiased = torch.tensor([-1.09544511, -0.54772255, 0.54772255, 1.09544511])
    biased = torch.tensor([-1.264831, -0.632416, 0.632416, 1.264831])
    torch.testing.assert_close(GroupNorm()(rewards, group), unbiased, rtol=0, atol=1e-6)
    torch.testing.assert_close(GroupNorm(delta=1e-4, unbiased=False)(rewards, group), biased, rtol=0, atol=1e-6)
    torch.testing.assert_close(BatchNorm()(rewards, group), biased, rtol=0, atol=1e-6)


def test_a_batch_norm_counts_differences_between_prompts_into_the_spread() -> None:
    rewards = torch.tensor([0.0, 1.0, 100.0, 101.0])
    credit = BatchNorm()(Rewards(rewards), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(credit, torch.tensor([-0.5, 0.5] * 2) / rewards.std(correction=0), rtol=1e-4, atol=0)


def test_a_single_outlier_is_cut_at_the_limit() -> None:
    rewards = Rewards(torch.tensor([*([0.0] * 63), 1.0]))
    credit = GroupNorm(limit=2.0)(rewards, torch.zeros(64, dtype=torch.int64))
    assert credit.max() == 2.0
