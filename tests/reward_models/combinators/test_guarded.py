import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from reward_models.base import Media, RewardError, RewardModel, Rewards, load_reward
from reward_models.combinators.guarded import Guarded
from reward_models.combinators.win_rate import WinRate
from reward_models.judges.bradley_terry import BradleyTerry
from reward_models.measures.colour import Colour

CPU = torch.device("cpu")
MEDIA = Media(torch.rand(4, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
let_go = threading.Event()


@dataclass(frozen=True)
class Fragile(RewardModel):
    """Fails on the prompt "bad", breaks down on "broken", hangs on "slow"."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device):
        return self

    def __call__(self, *, media, prompts):
        if "bad" in prompts:
            raise RewardError("a bad prompt")
        if "broken" in prompts:
            raise ZeroDivisionError("by nought")
        if "slow" in prompts:
            let_go.wait()
        value = media.pixels.mean((1, 2, 3, 4))
        return Rewards(value, {"half": value / 2})


def ask(prompts, **settings):
    return load_reward(Guarded(Fragile(), **settings), device=CPU)(media=MEDIA, prompts=prompts)


@pytest.mark.parametrize("word", ["bad", "broken"])
def test_a_sample_that_fails_is_left_out_alone(word):
    rewards, right = ask(["", word, "", ""]), ask([""] * 4)
    assert rewards.value.isnan().tolist() == rewards.parts["half"].isnan().tolist() == [False, True, False, False]
    assert torch.equal(rewards.value[[0, 2, 3]], right.value[[0, 2, 3]])


def test_a_failure_is_an_error_where_it_is_to_be_one():
    with pytest.raises(RewardError, match="a bad prompt"):
        ask(["", "bad", "", ""], on_failure="error")


def test_when_all_fail_it_is_an_error():
    with pytest.raises(RewardError, match="Fragile raised ZeroDivisionError: by nought"):
        ask(["broken"] * 4)


def test_a_hanging_reward_ends_at_its_deadline_and_is_not_asked_again():
    scorer = load_reward(Guarded(Fragile(), deadline=0.2), device=CPU)
    with pytest.raises(RewardError, match=r"did not answer about 4 samples within its deadline of 0.2 seconds"):
        scorer(media=MEDIA, prompts=["slow"] * 4)
    with pytest.raises(RewardError, match="not asked again"):
        scorer(media=MEDIA, prompts=[""] * 4)
    let_go.set()


def test_a_deadline_changes_no_score():
    assert torch.equal(ask([""] * 4, deadline=600.0).value, ask([""] * 4).value)


def test_groups_are_left_out_whole():
    @dataclass(frozen=True)
    class Judge(BradleyTerry):
        def load(self, *, device):
            compare = super().load(device=device)

            def fragile(*, first, second, prompts):
                if "bad" in prompts:
                    raise RewardError("a bad prompt")
                return compare(first=first, second=second, prompts=prompts)

            return fragile

    model, group = WinRate(Judge(Colour())), torch.tensor([1, 2, 1, 2])
    found = load_reward(Guarded(model), device=CPU)(media=MEDIA, prompts=["bad", "", "bad", ""], group=group)
    right = load_reward(model, device=CPU)(media=MEDIA, prompts=[""] * 4, group=group)
    assert found.value.isnan().tolist() == [True, False, True, False]
    torch.testing.assert_close(found.value[[1, 3]], right.value[[1, 3]])
