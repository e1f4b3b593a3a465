from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from alignment.config import registry
from alignment.errors import ConfigError
from reward_models.base import (
    KnownAnswer,
    Media,
    RewardError,
    RewardModel,
    Rewards,
    Scorer,
    load_reward,
)
from reward_models.combinators.weighted import Weighted, WeightedPart
from reward_models.errors import RewardOutOfMemory
from reward_models.measures.colour import Colour

CPU = torch.device("cpu")
PIXELS = torch.rand(4, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GROUP = torch.tensor([5, 5, 2, 2])


@dataclass(frozen=True)
class AboveTheGroup(RewardModel):
    """Red above the mean of the group."""

    differentiable: ClassVar[bool] = False
    scope: ClassVar = "group"

    def load(self, *, device):
        return self

    def __call__(self, *, media, prompts, group):
        red = media.pixels[:, :, 0].mean((1, 2, 3))
        return Rewards(torch.stack([red[i] - red[group == group[i]].mean() for i in range(len(red))]))


@dataclass(frozen=True)
class Answers(RewardModel):
    """Whatever it was given."""

    answer: object
    differentiable: ClassVar[bool] = False

    def load(self, *, device):
        return self

    def __call__(self, *, media, prompts):
        return self.answer


@dataclass(frozen=True)
class Stranger:
    """What somebody writes who has not seen the base class."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device):
        return lambda media, prompts: Rewards(torch.zeros(len(media)))


def test_a_source_follows_the_rows():
    media = Media(PIXELS, source=Media(PIXELS[:, :, :, :4]))
    assert torch.equal(media[1:3].source.pixels, PIXELS[1:3, :, :, :4])
    assert torch.equal(media[torch.tensor([3, 0])].source.pixels, PIXELS[[3, 0]][:, :, :, :4])
    with pytest.raises(RewardError, match="4 samples were made from 3 sources"):
        replace(media, source=media.source[:3])


def test_groups_reach_the_models_that_compare_and_no_other():
    together = Weighted({"own": WeightedPart(Colour()), "mine": WeightedPart(AboveTheGroup(), 2.0)})
    assert together.scope == "group"
    assert Weighted({"own": WeightedPart(Colour())}).scope == "sample"
    rewards = load_reward(together, device=CPU)(media=Media(PIXELS), prompts=[""] * 4, group=GROUP)
    alone = load_reward(AboveTheGroup(), device=CPU)(media=Media(PIXELS[:2]), prompts=[""] * 2, group=GROUP[:2])
    torch.testing.assert_close(rewards.parts["mine"][:2], alone.value)
    torch.testing.assert_close(rewards.value, rewards.parts["own"] + 2 * rewards.parts["mine"])


def test_a_model_that_compares_needs_groups():
    with pytest.raises(RewardError, match="AboveTheGroup compares samples of a group"):
        load_reward(AboveTheGroup(), device=CPU)(media=Media(PIXELS), prompts=[""] * 4)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Rewards(torch.zeros(3)), "Answers gave 3 scores for 4 samples"),
        ([0.0] * 4, "Answers answered with a list, expected Rewards"),
    ],
)
def test_what_is_no_answer_is_refused(answer, says):
    with pytest.raises(RewardError, match=says):
        load_reward(Answers(answer), device=CPU)(media=Media(PIXELS), prompts=[""] * 4)


def test_prompts_that_do_not_fit_are_refused():
    with pytest.raises(RewardError, match="4 samples with 1 prompts"):
        load_reward(Colour(), device=CPU)(media=Media(PIXELS), prompts=[""])


def test_a_stranger_is_told_what_to_inherit_from():
    says = r"Stranger .*lacks scope, check, .*waits; inherit from reward_models.base"
    with pytest.raises(RewardError, match=says):
        load_reward(Stranger(), device=CPU)
    with pytest.raises(RewardError, match=says):
        Weighted({"stranger": WeightedPart(Stranger())})
    with pytest.raises(ConfigError, match=r"lacks check, known_answers, .*scope, size, waits; inherit"):
        registry.find(RewardModel, f"{__name__}:Stranger")


@pytest.mark.parametrize(
    ("value", "bands", "best_first", "says"),
    [
        ([2.0, 1.0], ((1.5, 2.5), (0.5, 1.5)), True, None),
        ([2.0, 1.7], ((1.5, 2.5), (0.5, 1.5)), False, r"sample 1 scores 1.7, expected 0.5 to 1.5"),
        ([1.0, 1.0], (), True, r"sample 0 scores 1, which should be above the 1 of sample 1"),
        ([float("nan"), 1.0], (), True, "sample 0 scores nan"),
        ([1.0, float("nan")], ((0, 1), (0, 1)), False, "sample 1 scores nan"),
    ],
)
def test_known_answers(value, bands, best_first, says):
    answer = KnownAnswer("it", Media(PIXELS[:2]), ("", ""), bands, best_first)
    if says is None:
        answer.check(torch.tensor(value))
    else:
        with pytest.raises(RewardError, match=f"known answer 'it': {says}"):
            answer.check(torch.tensor(value))


def test_a_sum_asks_its_parts_for_their_known_answers():
    @dataclass(frozen=True)
    class Wrong(Colour):
        def load(self, *, device):
            return Colour("blue").load(device=device)

    good = Weighted({"red": WeightedPart(Colour())})
    assert len(load_reward(good, device=CPU).examine()) == 1
    with pytest.raises(RewardError, match="Wrong does not give its known answers: known answer 'red in red, green"):
        load_reward(Weighted({"red": WeightedPart(Wrong())}), device=CPU).examine()


@dataclass(frozen=True)
class Ends(RewardModel):
    """A reward of somebody else's, which ends badly while it is loaded or asked."""

    error: type[BaseException]
    loading: bool = False
    differentiable: ClassVar[bool] = False

    def load(self, *, device: torch.device) -> Scorer:
        if self.loading:
            raise self.error("4")
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        raise self.error("4")


@pytest.mark.parametrize("loading", [True, False])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SystemExit, RewardError),
        (KeyError, RewardError),
        (MemoryError, RewardOutOfMemory),
        (torch.OutOfMemoryError, RewardOutOfMemory),
    ],
)
def test_a_reward_that_ends_badly_ends_nothing_else(
    error: type[BaseException], kind: type[RewardError], loading: bool
) -> None:
    with pytest.raises(kind, match=f"Ends raised {error.__name__}: '?4"):
        load_reward(Ends(error, loading), device=CPU)(media=Media(torch.zeros(1, 1, 3, 2, 2)), prompts=("a",))
