from dataclasses import dataclass

import pytest
import torch

from alignment.credit.advantages.group_norm import GroupNorm
from reward_models.base import Media, PairwiseJudge, RewardError, Rewards, load_reward
from reward_models.combinators.weighted import Weighted, WeightedPart
from reward_models.combinators.win_rate import WinRate
from reward_models.judges.bradley_terry import BradleyTerry
from reward_models.measures.colour import Colour
from reward_models.measures.jpeg import Jpeg

CPU = torch.device("cpu")
REDS = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7, 0.2])
MEDIA = Media(torch.stack([REDS, 0 * REDS, 0 * REDS], 1)[:, None, :, None, None].expand(-1, 1, -1, 4, 4))
GROUP = torch.tensor([4, 4, 4, 9, 9, 9])
SHARP = BradleyTerry(Colour(), temperature=1e-3)


@dataclass(frozen=True)
class LikesTheFirst(PairwiseJudge):
    """Says that the redder one is better, and adds `bias` to what it is shown first; NaN where `silent`."""

    bias: float = 0.0
    silent: bool = False
    scale: float = 1.0

    def load(self, *, device):
        return self

    def __call__(self, *, first, second, prompts):
        assert len(first) == len(second) == len(prompts)
        better = (first.pixels.mean((1, 2, 3, 4)) > second.pixels.mean((1, 2, 3, 4))).float()
        won = (self.scale * better + self.bias).clamp(max=max(1.0, self.scale))
        return torch.full_like(won, torch.nan) if self.silent else won


@dataclass(frozen=True)
class Tabled(PairwiseJudge):
    """Looks up in a table of [first, second] by the samples' number, which is their red in hundredths."""

    table: torch.Tensor

    def load(self, *, device):
        return self

    def __call__(self, *, first, second, prompts):
        i, j = ((100 * media.pixels[:, 0, 0, 0, 0]).round().long() for media in (first, second))
        return self.table[i, j]


def numbered(count):
    reds = torch.arange(count) / 100
    return Media(torch.stack([reds, 0 * reds, 0 * reds], 1)[:, None, :, None, None].expand(-1, 1, -1, 4, 4))


def rate(judge, media=MEDIA, group=GROUP, **settings):
    return load_reward(WinRate(judge, **settings), device=CPU)(
        media=media, prompts=["x"] * len(media), group=group
    ).value


def test_the_best_of_a_group_wins_all_and_the_worst_none():
    torch.testing.assert_close(rate(SHARP), torch.tensor([0.0, 1.0, 0.5, 0.5, 1.0, 0.0]))


def test_an_even_judge_gives_one_half():
    torch.testing.assert_close(rate(BradleyTerry(Colour(), temperature=1e9)), torch.full((6,), 0.5))


@pytest.mark.parametrize("both_orders", [True, False])
@pytest.mark.parametrize("opponents", [None, 1, 2])
def test_win_rates_sum_to_half_the_group_whatever_the_judge_says(opponents, both_orders):
    # A win, a tie or a loss at random, and not the same the other way round.
    table = torch.randint(3, (11, 11), generator=torch.Generator().manual_seed(0)) / 2
    beats = (table > table.T).float()
    assert (beats @ beats @ beats).trace() > 0  # a beats b, b beats c, c beats a
    group = torch.tensor([1] * 5 + [0] * 6)
    rates = rate(Tabled(table), numbered(11), group, opponents=opponents, both_orders=both_orders)
    sums = torch.stack([rates[group == 1].sum(), rates[group == 0].sum()])
    torch.testing.assert_close(sums, torch.tensor([2.5, 3.0]))
    assert len(rates.unique()) > 2


@pytest.mark.parametrize("first", [0.5, 0.7, 1.0])
def test_where_all_tie_there_is_no_credit_at_all(first):
    """Also for a judge that only ever likes the first: both orders make it a tie, to the last bit."""
    rates = rate(Tabled(torch.full((7, 7), first)), numbered(7), torch.zeros(7, dtype=torch.int64))
    assert torch.equal(rates, torch.full((7,), 0.5))
    assert torch.equal(GroupNorm()(Rewards(rates), torch.zeros(7, dtype=torch.int64)), torch.zeros(7))


def test_both_orders_cancel_a_liking_for_the_first():
    torch.testing.assert_close(rate(LikesTheFirst(0.3, scale=0.4)), rate(LikesTheFirst(0.0, scale=0.4)))
    one_way = (rate(LikesTheFirst(bias, scale=0.4), both_orders=False) for bias in (0.3, 0.0))
    assert not torch.allclose(*one_way)


def test_groups_and_order_do_not_matter_with_few_opponents():
    whole = rate(SHARP, opponents=1)
    order = torch.tensor([5, 1, 3, 0, 2, 4])
    assert torch.equal(rate(SHARP, MEDIA[order], GROUP[order], opponents=1), whole[order])
    assert torch.equal(rate(SHARP, MEDIA[:3], GROUP[:3], opponents=1), whole[:3])


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_of_pairs_change_nothing(batch_size):
    torch.testing.assert_close(rate(SHARP, batch_size=batch_size), rate(SHARP))


def test_alone_or_not_judged_is_not_scored():
    assert rate(LikesTheFirst(silent=True)).isnan().all()
    assert rate(SHARP, group=torch.tensor([0, 0, 0, 0, 0, 1])).isnan().tolist() == [False] * 5 + [True]


def test_what_is_no_probability_is_refused():
    with pytest.raises(RewardError, match="numbers from 0 to 2; one probability per pair"):
        rate(LikesTheFirst(scale=2.0))


@pytest.mark.parametrize("settings", [{"opponents": 0}, {"batch_size": 0}])
def test_settings_that_compare_nothing_are_refused(settings):
    with pytest.raises(RewardError, match="has to be at least 1, got 0"):
        WinRate(SHARP, **settings)


def test_it_can_be_one_part_of_a_sum():
    model = Weighted({"wins": WeightedPart(WinRate(SHARP), 2.0), "size": WeightedPart(Jpeg(), 0.0)})
    rewards = load_reward(model, device=CPU)(media=MEDIA, prompts=[""] * 6, group=GROUP)
    torch.testing.assert_close(rewards.value, 2 * rate(SHARP))


def test_a_judge_made_of_a_judge_is_refused():
    with pytest.raises(RewardError, match="compares already"):
        BradleyTerry(WinRate(SHARP))
