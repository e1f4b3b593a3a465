from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from reward_models.base import Media, RewardError, RewardModel, Rewards
from reward_models.colour import Colour
from reward_models.jpeg import Jpeg
from reward_models.weighted import Weighted, WeightedPart

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


@pytest.mark.parametrize("parts", [{}, {"red": WeightedPart(Colour(), 0.0)}])
def test_a_sum_of_nothing_is_refused(parts):
    with pytest.raises(RewardError, match="weight"):
        Weighted(parts)
