import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from reward_models.base import Media, RewardError, RewardModel, Rewards
from reward_models.combinators.weighted import Weighted, WeightedPart
from reward_models.measures.colour import Colour
from reward_models.measures.jpeg import Jpeg

CPU = torch.device("cpu")
MEDIA = Media(torch.rand(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


@dataclass(frozen=True)
class Sometimes(RewardModel):
    """Cannot score row 1."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device):
        return self

    def __call__(self, *, media, prompts):
        value = torch.tensor([1.0, float("nan"), 3.0])
        return Rewards(value, {"twice": 2 * value})


def score(**parts):
    return Weighted(parts).load(device=CPU)(media=MEDIA, prompts=[""] * 3)


def test_the_value_is_the_weighted_sum_and_parts_are_unweighted():
    rewards = score(red=WeightedPart(Colour(), 2.0), size=WeightedPart(Jpeg(), -0.5))
    red, size = (model.load(device=CPU)(media=MEDIA, prompts=[""] * 3).value for model in (Colour(), Jpeg()))
    torch.testing.assert_close(rewards.value, 2 * red - 0.5 * size)
    assert torch.equal(rewards.parts["red"], red)
    assert torch.equal(rewards.parts["size"], size)


def test_a_missing_part_makes_the_sum_missing_unless_its_weight_is_zero():
    some = score(red=WeightedPart(Colour()), some=WeightedPart(Sometimes()))
    assert some.value.isnan().tolist() == [False, True, False]
    recorded = score(red=WeightedPart(Colour()), some=WeightedPart(Sometimes(), 0.0))
    assert torch.equal(recorded.value, recorded.parts["red"])
    assert recorded.parts["some/twice"].isnan().tolist() == [False, True, False]


def test_gradients_flow_only_when_every_part_lets_them():
    assert Weighted({"red": WeightedPart(Colour())}).differentiable
    assert not Weighted({"red": WeightedPart(Colour()), "size": WeightedPart(Jpeg())}).differentiable
    assert Weighted({"red": WeightedPart(Colour()), "size": WeightedPart(Jpeg(), 0.0)}).differentiable


def test_sums_nest():
    inner = Weighted({"red": WeightedPart(Colour(), 2.0)})
    assert set(score(inner=WeightedPart(inner)).parts) == {"inner", "inner/red"}


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("field", ["weight", "centre", "spread", "at_least"])
def test_numbers_of_a_part_are_finite(field, number):
    with pytest.raises(RewardError, match=f"weighted: {field} of red has to be finite, got {number}"):
        Weighted({"red": WeightedPart(Colour(), **{field: number})}, gated=-1.0)


@pytest.mark.parametrize("weights", [(1e308,), (1e38, 1e38, 1e38, 1e38), (1e308, -1e308)])
def test_a_sum_beyond_float32_is_refused_and_never_taken_for_a_missing_score(weights):
    parts = {f"red{number}": WeightedPart(Colour(), weight) for number, weight in enumerate(weights)}
    red = Media(torch.eye(3)[:1, None, :, None, None].expand(3, 1, 3, 8, 8))
    with pytest.raises(RewardError, match="the sum is larger than float32 can hold; give smaller weights"):
        Weighted(parts).load(device=CPU)(media=red, prompts=[""] * 3)


def test_what_fails_a_gate_scores_a_finite_number():
    with pytest.raises(RewardError, match="gated has to be finite, got -inf"):
        Weighted({"red": WeightedPart(Colour(), at_least=0.5)}, gated=-math.inf)


@pytest.mark.parametrize("parts", [{}, {"red": WeightedPart(Colour(), 0.0)}])
def test_a_sum_of_nothing_is_refused(parts):
    with pytest.raises(RewardError, match="weight"):
        Weighted(parts)


def test_a_part_is_measured_from_its_centre_in_its_spread():
    rewards = score(red=WeightedPart(Colour(), 2.0, centre=0.5, spread=4.0))
    torch.testing.assert_close(rewards.value, 2 * (rewards.parts["red"] - 0.5) / 4)


def test_what_fails_a_gate_scores_the_gated_value():
    red = score(red=WeightedPart(Colour())).value
    limit = red.median().item()
    parts = {"size": WeightedPart(Jpeg(), 1.0), "red": WeightedPart(Colour(), 0.0, at_least=limit)}
    rewards = Weighted(parts, gated=-9.0).load(device=CPU)(media=MEDIA, prompts=[""] * 3)
    assert rewards.parts["passed"].tolist() == (red >= limit).float().tolist()
    torch.testing.assert_close(rewards.value, torch.where(red >= limit, rewards.parts["size"], -9.0))


def test_a_gate_that_could_not_look_leaves_the_sample_unscored():
    parts = {"red": WeightedPart(Colour()), "some": WeightedPart(Sometimes(), 0.0, at_least=2.0)}
    rewards = Weighted(parts, gated=0.0).load(device=CPU)(media=MEDIA, prompts=[""] * 3)
    assert rewards.value[0] == 0
    assert rewards.value.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("parts", "gated", "says"),
    [
        ({"red": WeightedPart(Colour(), at_least=0.0)}, None, "red is a gate"),
        ({"red": WeightedPart(Colour())}, 0.0, "no part has at_least"),
        ({"red": WeightedPart(Colour(), spread=0.0)}, None, "spread of red has to be more than 0"),
        ({"passed": WeightedPart(Colour(), at_least=0.0)}, 0.0, "'passed' is taken"),
    ],
)
def test_gates_and_spreads_that_make_no_sense_are_refused(parts, gated, says):
    with pytest.raises(RewardError, match=says):
        Weighted(parts, gated)
