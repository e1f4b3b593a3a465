import gc
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import nn

from reward_models.base import Media, RewardError, RewardModel, Rewards, load_reward
from reward_models.combinators.cached import Cached
from reward_models.combinators.weighted import Weighted, WeightedPart
from reward_models.combinators.win_rate import WinRate
from reward_models.judges.bradley_terry import BradleyTerry
from reward_models.loading.fingerprint import fingerprint
from reward_models.measures.colour import Colour

CPU = torch.device("cpu")
PIXELS = torch.rand(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
asked: list[int] = []


@dataclass(frozen=True)
class Counting(RewardModel):
    """Brightness; writes down how many samples it was asked about. Cannot score pictures without red."""

    seed: int = 0
    differentiable: ClassVar[bool] = False

    def load(self, *, device):
        torch.manual_seed(self.seed)
        return CountingScorer(nn.Linear(3, 1))


@dataclass
class CountingScorer:
    network: nn.Module
    others: list = field(default_factory=list)

    def __call__(self, *, media, prompts):
        asked.append(len(media))
        value = media.pixels.float().mean((1, 2, 3, 4)) + torch.tensor([float(len(p)) for p in prompts])
        value[media.pixels[:, :, 0].sum((1, 2, 3)) == 0] = torch.nan
        return Rewards(value, {"twice": 2 * value})


@pytest.fixture(autouse=True)
def forget():
    asked.clear()


def score(scorer, media, prompts=("", "", "")):
    return scorer(media=media, prompts=list(prompts[: len(media)]))


def test_the_same_sample_is_scored_once():
    scorer, plain = load_reward(Cached(Counting()), device=CPU), load_reward(Counting(), device=CPU)
    for media in (Media(PIXELS), Media(PIXELS[[0, 0, 1]]), Media(PIXELS[:1])):
        found, right = score(scorer, media), score(plain, media)
        assert torch.equal(found.value, right.value)
        assert torch.equal(found.parts["twice"], right.parts["twice"])
    assert asked == [3, 3, 3, 1]  # the plain one every time, the other once
    twice = Media(PIXELS[[2, 2]] / 2)
    score(scorer, twice)
    assert asked[-1] == 1


@pytest.mark.parametrize(
    ("media", "prompts"),
    [
        (Media(PIXELS.double().float() + 1e-6), ("", "", "")),
        (Media(PIXELS.half()), ("", "", "")),
        (Media(PIXELS.reshape(3, 1, 3, 4, 16)), ("", "", "")),
        (Media(PIXELS, fps=8.0), ("", "", "")),
        (Media(PIXELS, source=Media(PIXELS)), ("", "", "")),
        (Media(PIXELS), ("a", "b", "c")),
    ],
    ids=["pixels", "dtype", "shape", "fps", "source", "prompt"],
)
def test_what_differs_is_scored_anew(media, prompts):
    scorer = load_reward(Cached(Counting()), device=CPU)
    score(scorer, Media(PIXELS))
    score(scorer, media, prompts)
    assert asked == [3, 3]


def test_a_file_outlives_the_scorer_and_knows_models_apart(tmp_path):
    file = str(tmp_path / "scores.sqlite")
    first = score(load_reward(Cached(Counting(), file), device=CPU), Media(PIXELS))
    again = score(load_reward(Cached(Counting(), file), device=CPU), Media(PIXELS))
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.parts["twice"], again.parts["twice"])
    assert asked == [3]
    score(load_reward(Cached(Counting(seed=1), file), device=CPU), Media(PIXELS))
    assert asked == [3, 3]
    gc.collect()


def test_what_could_not_be_scored_is_tried_again():
    scorer, black = load_reward(Cached(Counting()), device=CPU), Media(PIXELS * torch.tensor([0, 1, 1])[:, None, None])
    assert score(scorer, black).value.isnan().all()
    assert score(scorer, black).value.isnan().all()
    assert asked == [3, 3]


def test_memory_is_bounded():
    scorer = load_reward(Cached(Counting(), entries=2), device=CPU)
    score(scorer, Media(PIXELS))
    assert len(scorer.scorer.memory) == 2


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look like a file of some other kind" * 9)
    with pytest.raises(RewardError, match=r"notes.txt cannot be used: file is not a database"):
        load_reward(Cached(Colour(), str(tmp_path / "notes.txt")), device=CPU)
    with pytest.raises(RewardError, match="there is no folder"):
        Cached(Colour(), str(tmp_path / "nowhere" / "scores.sqlite")).check(())


def test_scores_within_a_group_are_not_remembered():
    with pytest.raises(RewardError, match="by its group"):
        Cached(WinRate(BradleyTerry(Colour())))


def test_a_fingerprint_sees_description_weights_and_parts():
    def of(model):
        return fingerprint(load_reward(model, device=CPU))

    def sum_of(part):
        return Weighted({"one": WeightedPart(part)})

    same = Counting(), Counting()
    assert of(same[0]) == of(same[1])
    assert of(sum_of(Counting())) == of(sum_of(Counting()))
    loaded = load_reward(Counting(), device=CPU)
    before = fingerprint(loaded)
    with torch.no_grad():
        loaded.scorer.network.weight[0, 0] += 1
    assert len({before, fingerprint(loaded), of(Counting(seed=1)), of(Colour()), of(sum_of(Colour()))}) == 5
