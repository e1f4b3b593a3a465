"""Advantages over several rewards: what each of them does with the parts, and what is told of their agreement."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignment.credit.advantages.base import Advantage
from alignment.credit.advantages.chain import Chain
from alignment.credit.advantages.gdpo import GDPO
from alignment.credit.advantages.group_norm import GroupNorm
from alignment.credit.advantages.lexicographic import Lexicographic
from alignment.credit.advantages.log_tamed import LogTamed
from alignment.credit.advantages.min import Min
from alignment.credit.advantages.parts import ByWeight, conflicts, parts_of
from alignment.credit.advantages.weighted import Weighted
from alignment.errors import ConfigError
from reward_models.base import RewardError, Rewards

GROUP = torch.tensor([0, 0, 0, 0, 7, 7, 7, 7])
ROUNDING = 1e-5  # float32 z-scores of eight numbers
OVER_PARTS: list[Advantage] = [GDPO(), Weighted(), LogTamed(), Min(), Lexicographic(), Chain()]
BY_ORDER: list[Advantage] = [Lexicographic(), Chain()]


def rewards(**parts: list[float]) -> Rewards:
    columns = {name: torch.tensor(scores, dtype=torch.float32) for name, scores in parts.items()}
    return Rewards(torch.stack(list(columns.values())).sum(dim=0), columns)


def named(advantages: list[Advantage]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("advantage", advantages, ids=lambda one: type(one).__name__)


def group_wise(value: Tensor) -> Tensor:
    return GroupNorm()(Rewards(value), GROUP)


A = [1.0, 2.0, 4.0, 5.0, 3.0, 1.0, 8.0, 2.0]
B = [0.3, 0.1, 0.9, 0.2, 0.4, 0.8, 0.6, 0.5]


@named([GDPO(delta=0), Weighted(), LogTamed(), Min()])
def test_one_part_alone_is_the_z_score(advantage: Advantage) -> None:
    credit = advantage(rewards(a=A), GROUP)
    expected = group_wise(torch.tensor(A))
    if isinstance(advantage, GDPO):  # of the step, biased
        expected = expected / expected.std(correction=0)
    torch.testing.assert_close(credit, expected, rtol=ROUNDING, atol=ROUNDING)


@named(OVER_PARTS)
def test_a_part_twice_says_no_more_than_once(advantage: Advantage) -> None:
    once, twice = (advantage(one, GROUP) for one in (rewards(a=A), rewards(a=A, b=A)))
    factor = 2.0 if isinstance(advantage, Weighted) else 1.0
    torch.testing.assert_close(twice, factor * once, rtol=1e-3, atol=1e-3)


@named([GDPO(), Weighted(), Min(), *BY_ORDER])
def test_the_unit_of_a_reward_does_not_decide(advantage: Advantage) -> None:
    plain, scaled = rewards(a=A, b=B), rewards(a=[100 * a for a in A], b=B)
    torch.testing.assert_close(advantage(scaled, GROUP), advantage(plain, GROUP), rtol=ROUNDING, atol=ROUNDING)


@named(OVER_PARTS)
def test_credit_of_a_group_sums_to_zero_and_a_sample_that_lacks_a_part_gets_none(advantage: Advantage) -> None:
    b = [*B[:5], math.nan, *B[6:]]
    credit = advantage(rewards(a=A, b=b), GROUP)
    assert credit[5] == 0
    assert credit.dtype == torch.float32
    for one in (0, 7):
        assert abs(credit[GROUP == one].sum()) < ROUNDING
    keep = torch.arange(8) != 5
    without = advantage(rewards(a=A, b=B)[keep], GROUP[keep])
    torch.testing.assert_close(credit[keep], without, rtol=0, atol=0)


@named([GDPO(), Weighted(), Min(), *BY_ORDER])
def test_a_part_that_ties_in_a_group_says_nothing_there(advantage: Advantage) -> None:
    flat = [0.5] * 4 + B[4:]
    credit = advantage(rewards(a=A, b=flat), GROUP)[:4]
    alone = advantage(rewards(a=A[:4]), GROUP[:4])
    torch.testing.assert_close(credit / credit.norm(), alone / alone.norm(), rtol=1e-3, atol=1e-3)


def test_gdpo_by_hand() -> None:
    """z-scores of (1, 3) are -+.7071; with weights 1 and 3 they add up to +-1.4142, whose spread is divided out."""
    group = torch.tensor([0, 0, 1, 1])
    found = GDPO({"a": 1.0, "b": 3.0}, delta=0.0)(rewards(a=[1, 3, 1, 3], b=[9, 5, 5, 9]), group)
    z = 0.5**0.5 * torch.tensor([2.0, -2.0, -4.0, 4.0])
    torch.testing.assert_close(found, z / z.std(correction=0), rtol=ROUNDING, atol=ROUNDING)


def test_two_different_samples_with_one_sum_are_told_apart_by_gdpo_alone() -> None:
    """The case of the paper: rewards whose raw sums tie."""
    both = rewards(a=[0.0, 1.0, 1.0, 0.0], b=[2.0, 1.0, 0.0, 2.0])
    group = torch.zeros(4, dtype=torch.int64)
    raw, apart = GroupNorm()(both, group), GDPO()(both, group)
    assert raw[0] == raw[1] == raw[3]
    assert apart[0] != apart[1]


def test_the_weighted_sum_adds_what_agrees_and_cancels_what_does_not() -> None:
    turned = [-a for a in A]
    agree, cancel = (Weighted()(rewards(a=A, b=b), GROUP) for b in (A, turned))
    torch.testing.assert_close(agree, 2 * group_wise(torch.tensor(A)), rtol=ROUNDING, atol=ROUNDING)
    assert cancel.abs().max() < ROUNDING


def test_only_the_erratic_part_is_tamed() -> None:
    """The quotient std / mean of (1, 2, 4, 5) is .527 and of (10, 11, 12, 13) .097; the mean lies between."""
    group = torch.zeros(4, dtype=torch.int64)
    a, b = [1.0, 2.0, 4.0, 5.0], [10.0, 11.0, 12.0, 13.0]
    tamed = torch.tensor([0.693147, 1.098612, 1.609438, 1.791759])
    expected = GroupNorm()(Rewards(tamed + torch.tensor(b)), group)
    torch.testing.assert_close(LogTamed()(rewards(a=a, b=b), group), expected, rtol=ROUNDING, atol=ROUNDING)
    never, always = LogTamed(threshold=1.0), LogTamed(threshold=0.0)
    torch.testing.assert_close(never(rewards(a=a), group), GroupNorm()(Rewards(torch.tensor(a)), group))
    torch.testing.assert_close(always(rewards(a=a), group), GroupNorm()(Rewards(tamed), group), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [[-1.5, 2.0, 4.0, 5.0], [-0.5, -0.2, 0.1, 0.2]], ids=["below -1", "negative mean"])
def test_what_cannot_be_tamed_is_an_error(bad: list[float]) -> None:
    with pytest.raises(RewardError, match=r"log_tamed: .* but b goes down to"):
        LogTamed()(rewards(a=[1.0, 2.0, 4.0, 5.0], b=bad), torch.zeros(4, dtype=torch.int64))


def test_the_worst_reward_decides_under_min() -> None:
    """Sample 0 is best in a and worst in b; sample 1 is good in both."""
    credit = Min()(rewards(a=[9.0, 6.0, 5.0, 0.0], b=[0.0, 6.0, 5.0, 4.0]), torch.zeros(4, dtype=torch.int64))
    assert credit.argmax() == 1
    assert credit[0] < 0


def test_a_later_part_decides_only_where_the_earlier_one_ties() -> None:
    group = torch.zeros(4, dtype=torch.int64)
    scores = rewards(a=[1.0, 1.0, 0.0, 0.0], b=[0.2, 0.1, 0.9, 0.8])
    order = Lexicographic(("a", "b"))(scores, group).argsort(descending=True)
    assert order.tolist() == [0, 1, 2, 3]
    assert Lexicographic(("b", "a"))(scores, group).argsort(descending=True).tolist() == [2, 3, 0, 1]
    near = rewards(a=[1.00, 1.01, 0.0, 0.02], b=[0.9, 0.1, 0.1, 0.9])
    assert Lexicographic(("a", "b"), tolerance=0.1)(near, group).argsort().tolist()[-1] == 0
    with pytest.raises(ConfigError, match="tolerance"):
        Lexicographic(tolerance=-1.0)


scores = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9)


@given(drawn=scores)
def test_what_is_better_in_every_respect_has_more_credit(drawn: list[tuple[int, int, int]]) -> None:
    columns = torch.tensor(drawn, dtype=torch.float32).unbind(1)
    both = Rewards(columns[0], dict(zip("abc", columns, strict=True)))
    group = torch.zeros(len(drawn), dtype=torch.int64)
    chain, lexicographic = Chain()(both, group), Lexicographic()(both, group)
    for i, one in enumerate(drawn):
        for j, other in enumerate(drawn):
            if one != other and all(x >= y for x, y in zip(one, other, strict=True)):
                assert chain[i] > chain[j]
                assert lexicographic[i] > lexicographic[j]


@named(BY_ORDER)
def test_only_order_counts(advantage: Advantage) -> None:
    bent = rewards(a=[math.exp(a) for a in A], b=[b**3 for b in B])
    torch.testing.assert_close(advantage(bent, GROUP), advantage(rewards(a=A, b=B), GROUP), rtol=0, atol=0)


def test_a_chain_gives_the_middle_place_to_what_cannot_be_compared() -> None:
    """0 < 1 < 2 in both; 3 is best in one and worst in the other."""
    credit = Chain()(rewards(a=[1.0, 2.0, 3.0, 0.0], b=[1.0, 2.0, 3.0, 9.0]), torch.zeros(4, dtype=torch.int64))
    assert credit[0] < credit[1] < credit[2]
    assert credit[3] == credit[1] == 0


def test_one_part_in_a_chain_is_plain_ranking() -> None:
    group = torch.zeros(4, dtype=torch.int64)
    expected = GroupNorm()(Rewards(torch.tensor([0.0, 1.0, 1.0, 2.0])), group)
    for advantage in BY_ORDER:
        torch.testing.assert_close(advantage(rewards(a=[0.1, 5.0, 5.0, 7.0]), group), expected)


# ---- which parts -----------------------------------------------------------------------------------------------------


def test_parts_of_parts_are_read_only_by_name() -> None:
    both = Rewards(torch.zeros(2), {"a": torch.ones(2), "a/x": torch.zeros(2)})
    assert list(parts_of(both)) == ["a"]
    assert list(parts_of(both, ("a/x",))) == ["a/x"]
    assert list(parts_of(Rewards(torch.zeros(2)))) == ["value"]


def test_a_part_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(RewardError, match="no part called c; its parts are: a, b"):
        GDPO({"a": 1.0, "c": 1.0})(rewards(a=A, b=B), GROUP)


# ---- conflicts -------------------------------------------------------------------------------------------------------


def test_agreement_is_the_correlation_of_credits() -> None:
    turned = [-3 * a + 1 for a in A]
    found = conflicts(rewards(a=A, b=turned, c=B), GROUP)
    assert found["a", "b"] == pytest.approx(-1, abs=ROUNDING)
    z = torch.stack([group_wise(torch.tensor(score)) for score in (A, B)])
    assert found["a", "c"] == pytest.approx(torch.corrcoef(z)[0, 1].item(), abs=ROUNDING)
    assert found["b", "c"] == pytest.approx(-found["a", "c"], abs=ROUNDING)


def test_a_group_in_which_one_ties_is_left_out() -> None:
    b = [*A[:4], 1.0, 1.0, 1.0, 1.0]
    assert conflicts(rewards(a=A, b=b), GROUP) == {("a", "b"): pytest.approx(1, abs=ROUNDING)}
    assert conflicts(rewards(a=A, b=[1.0] * 8), GROUP) == {}
    assert conflicts(rewards(a=A), GROUP) == {}


def test_the_sum_may_be_limited_as_its_parts_are() -> None:
    """The best of 24 by three equal rewards: 4.69 by each of them, 14.08 by all."""
    scores = [1.0] + [0.0] * 23
    three, group = rewards(a=scores, b=scores, c=scores), torch.zeros(24, dtype=torch.int64)
    assert Weighted()(three, group)[0].item() == pytest.approx(14.08, abs=0.01)
    limited = Weighted(limit_of_sum=5.0)(three, group)
    assert limited[0].item() == 5.0
    torch.testing.assert_close(limited[1:], Weighted()(three, group)[1:])
    with pytest.raises(ConfigError, match="limit_of_sum must be > 0 or null, got 0"):
        Weighted(limit_of_sum=0.0)


@pytest.mark.parametrize("weight", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", ByWeight.__subclasses__())
def test_weights_are_finite(kind: type[ByWeight], weight: float) -> None:
    with pytest.raises(ValueError, match=f"the weight of a has to be finite, got {weight}"):
        kind({"a": weight})
