"""What every reward model keeps, whatever it scores; a new file in `reward_models/` is tested without being named here.

A model whose fields have no defaults adds a line to `ARGUMENTS`, one that needs a checkpoint writes a tiny one in
`tests/support/tiny_rewards.py`, and one with a language of its own adds two sentences to `LANGUAGES`.
"""

from dataclasses import MISSING, dataclass, fields, replace
from typing import ClassVar

import pytest
import torch

from alignment.config import registry
from reward_models.base import Media, RewardModel, Rewards, Scope, load_reward
from reward_models.combinators.function import Function
from reward_models.combinators.weighted import Weighted, WeightedPart
from reward_models.judges.bradley_terry import BradleyTerry
from reward_models.measures.colour import Colour
from tests.support.bright_vlm import BrightVlm
from tests.support.served import served
from tests.support.tiny_rewards import TINY

CPU = torch.device("cpu")
NAMES = tuple(registry.known(RewardModel))


def brightness(pixels, prompts):
    return pixels.mean((1, 2, 3, 4))


ARGUMENTS = {
    "function": {"call": f"{__name__}:brightness"},
    "cached": {"reward": Colour()},
    "cropped": {"reward": Colour(), "box": (0.25, 0.0, 1.0, 0.5)},
    "guarded": {"reward": Colour(), "deadline": 600.0},
    "paco": {"vlm": BrightVlm()},
    "reward_dance": {"vlm": BrightVlm(), "reference": "group"},
    "unified_reward": {"vlm": BrightVlm(written="Alignment Score: 2\nCoherence Score: 3\nStyle Score: 4")},
    "win_rate": {"judge": BradleyTerry(Colour())},
    "weighted": {"parts": {"red": WeightedPart(Colour(), 0.5), "blue": WeightedPart(Colour("blue"))}},
}
SLOW = {"hpsv3", "videoalign"}  # their instructions are thousands of letters, and a tiny vocabulary has only letters
LANGUAGES = {
    "geneval": ("a photo of two dogs", "a photo of a red car and a green bench"),
    "motion": ("a red circle moves left", "a blue square moves up"),
    "ocr": ('a sign that says "OPEN"', 'a shirt with "7 days" on it'),
}
GROUP = torch.tensor([7, 3, 7, 3])
SCORED: dict[str, Rewards] = {}


def build(name):
    kind = registry.find(RewardModel, name)
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    missing = needed - set(ARGUMENTS.get(name, {}))
    assert not missing, f"{kind.__name__} has no default for {sorted(missing)}: give it one, or a line in ARGUMENTS"
    return kind(**ARGUMENTS.get(name, {}))


@pytest.fixture(scope="module")
def server():
    with served(Colour()) as url:
        yield url


@pytest.fixture(
    params=[
        pytest.param(name, marks=(pytest.mark.slow, pytest.mark.xdist_group(name)) if name in SLOW else ())
        for name in NAMES
    ]
)
def name(request):
    return request.param


@pytest.fixture
def model(name, request, tiny_rewards):
    if name == "remote":
        ARGUMENTS["remote"] = {"url": request.getfixturevalue("server"), "pixels": "float32"}
    return tiny_rewards(name) if name in TINY else build(name)


@pytest.fixture
def prompts(name):
    one, other = LANGUAGES.get(name, ("two red circles", "a green triangle"))
    return [one, other, one, other]


@pytest.fixture
def media():
    return Media(torch.rand(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), fps=8.0)


@pytest.fixture
def whole(name, model, media, prompts):
    """Return the scores of all rows; a model is asked for them once, and again where that is what is tested."""
    if name not in SCORED:
        SCORED[name] = load_reward(model, device=CPU)(media=media, prompts=prompts, group=GROUP)
    return SCORED[name]


def test_it_is_a_frozen_reward_model(name, model):
    assert isinstance(model, RewardModel)
    assert isinstance(model.differentiable, bool)
    assert model == replace(model)
    assert type(model) is registry.find(RewardModel, name)
    assert type(model).__dataclass_params__.frozen


def test_scores_are_one_float32_a_row(whole):
    assert isinstance(whole, Rewards)
    assert whole.value.shape == (4,)
    assert whole.value.dtype == torch.float32


def test_parts_are_those_that_were_told_before(model, whole):
    if (told := model.part_names()) is not None:
        assert {name.split("/")[0] for name in whole.parts} == set(told)


def test_what_is_right_or_wrong_is_nothing_between(model, media, prompts):
    if told := model.right_or_wrong():
        pictures = Media(media.pixels[:, :1])  # a clip has the mean over its frames
        found = load_reward(model, device=CPU)(media=pictures, prompts=prompts, group=GROUP)
        for part in told:
            scores = found.parts[part] if part else found.value
            assert set(scores[~scores.isnan()].tolist()) <= {0.0, 1.0}


def test_the_score_of_a_batch_is_the_scores_of_its_rows_or_groups(model, whole, media, prompts):
    scorer = load_reward(model, device=CPU)
    parts = [torch.tensor([i]) for i in range(4)] if model.scope == "sample" else [GROUP == 7, GROUP == 3]
    for rows in parts:
        some = [prompts[i] for i in torch.arange(4)[rows].tolist()]
        alone = scorer(media=media[rows], prompts=some, group=GROUP[rows])
        torch.testing.assert_close(alone.value, whole.value[rows], equal_nan=True)
        for name, part in whole.parts.items():
            torch.testing.assert_close(alone.parts[name], part[rows], equal_nan=True)


def test_the_order_of_the_rows_does_not_matter(model, whole, media, prompts):
    order = torch.tensor([2, 0, 3, 1])
    mixed = load_reward(model, device=CPU)(
        media=media[order], prompts=[prompts[i] for i in order.tolist()], group=GROUP[order]
    )
    torch.testing.assert_close(mixed.value, whole.value[order], equal_nan=True)


def test_known_answers_are_given(model):
    answers = load_reward(model, device=CPU).examine()
    assert len(answers) >= len(model.known_answers())


def test_one_that_reads_no_prompts_scores_alike_under_any(model, whole, media, prompts):
    if not model.reads_prompts():
        bare = load_reward(model, device=CPU)(media=media, prompts=[""] * len(prompts), group=GROUP)
        assert torch.equal(bare.value.nan_to_num(), whole.value.nan_to_num())


def test_it_is_deterministic_and_leaves_the_pixels_alone(model, whole, media, prompts):
    before = media.pixels.clone()
    again = load_reward(model, device=CPU)(media=media, prompts=prompts, group=GROUP)
    assert torch.equal(again.value.nan_to_num(), whole.value.nan_to_num())
    assert torch.equal(media.pixels, before)


def test_gradients_reach_the_pixels_if_and_only_if_declared(model, media, prompts):
    rows = GROUP == 7  # one group: some have thousands of tokens to go back through
    part, texts = media[rows], [text for text, chosen in zip(prompts, rows.tolist(), strict=True) if chosen]
    pixels = part.pixels.clone().requires_grad_()
    value = load_reward(model, device=CPU)(media=replace(part, pixels=pixels), prompts=texts, group=GROUP[rows]).value
    assert value.requires_grad == model.differentiable
    if model.differentiable:
        value.sum().backward()
        assert pixels.grad.abs().sum() > 0


# ---- what strangers may do -------------------------------------------------------------------------------------------


def black(pixels, prompts):
    return pixels.mul_(0).mean((1, 2, 3, 4))


def black_by_numpy(pixels, prompts):
    pixels.numpy()[...] = 0
    return pixels.mean((1, 2, 3, 4))


@dataclass(frozen=True)
class Blackens(RewardModel):
    """A reward of another package, which paints over what it is shown, and over what that was made from."""

    differentiable: ClassVar[bool] = False

    def load(self, *, device):
        return self

    def __call__(self, *, media, prompts):
        for pixels in (media.pixels, media.source.pixels):
            pixels.zero_()
        return Rewards(media.pixels.mean((1, 2, 3, 4)))


@dataclass(frozen=True)
class Regroups(Blackens):
    """The same, comparing within groups that it makes up."""

    scope: ClassVar[Scope] = "group"

    def __call__(self, *, media, prompts, group):
        group.zero_()
        return super().__call__(media=media, prompts=prompts)


WRITERS = (Function(f"{__name__}:black"), Function(f"{__name__}:black_by_numpy"), Blackens(), Regroups())


@pytest.mark.parametrize("writer", WRITERS, ids=["torch", "numpy", "class", "group"])
def test_a_reward_that_writes_into_its_pixels_changes_nothing_for_the_next(writer, media):
    pictures = replace(media, source=media)
    group = GROUP.clone()
    both = Weighted({"writer": WeightedPart(writer), "red": WeightedPart(Colour())})
    before = media.pixels.clone()
    found = load_reward(both, device=CPU)(media=pictures, prompts=["a"] * 4, group=group)
    alone = load_reward(Colour(), device=CPU)(media=Media(before, fps=8.0), prompts=["a"] * 4)
    assert torch.equal(found.parts["red"], alone.value)
    assert found.parts["writer"].tolist() == [0.0] * 4
    assert torch.equal(media.pixels, before)
    assert torch.equal(group, GROUP)


def test_a_strangers_gradient_reaches_the_pixels_it_was_not_handed():
    pixels = torch.rand(2, 1, 3, 4, 4, requires_grad=True)
    load_reward(Brightness(), device=CPU)(media=Media(pixels), prompts=["a"] * 2).value.sum().backward()
    assert pixels.grad.unique().tolist() == [pytest.approx(1 / 48)]


@dataclass(frozen=True)
class Brightness(Blackens):
    """A differentiable reward of another package."""

    differentiable: ClassVar[bool] = True

    def __call__(self, *, media, prompts):
        return Rewards(media.pixels.mean((1, 2, 3, 4)))
