"""What every reward model keeps, whatever it scores; a new file in `reward_models/` is tested without being named here.

A model whose fields have no defaults adds a line to `ARGUMENTS`.
"""

import importlib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch

import reward_models
from reward_models.base import Media, RewardModel, Rewards
from reward_models.colour import Colour
from reward_models.weighted import WeightedPart

CPU = torch.device("cpu")
FOLDER = Path(reward_models.__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_") and file.stem != "base")


def brightness(pixels, prompts):
    return pixels.mean((1, 2, 3, 4))


ARGUMENTS = {
    "function": {"call": f"{__name__}:brightness"},
    "weighted": {"parts": {"red": WeightedPart(Colour(), 0.5), "blue": WeightedPart(Colour("blue"))}},
}
PROMPTS = ["two red circles", "a blue square left of a white triangle", "a green triangle", "three white squares"]


def build(name):
    kind = getattr(importlib.import_module(f"reward_models.{name}"), "".join(w.title() for w in name.split("_")))
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    missing = needed - set(ARGUMENTS.get(name, {}))
    assert not missing, f"{kind.__name__} has no default for {sorted(missing)}: give it one, or a line in ARGUMENTS"
    return kind(**ARGUMENTS.get(name, {}))


@pytest.fixture(params=NAMES)
def model(request):
    return build(request.param)


@pytest.fixture
def media():
    return Media(torch.rand(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_it_is_a_frozen_reward_model(model):
    assert isinstance(model, RewardModel)
    assert isinstance(model.differentiable, bool)
    assert model == build(type(model).__module__.rsplit(".", 1)[1])
    assert type(model).__dataclass_params__.frozen


def test_scores_are_one_float32_a_row(model, media):
    rewards = model.load(device=CPU)(media=media, prompts=PROMPTS)
    assert isinstance(rewards, Rewards)
    assert rewards.value.shape == (4,)
    assert rewards.value.dtype == torch.float32


def test_the_score_of_a_batch_is_the_scores_of_its_rows(model, media):
    scorer = model.load(device=CPU)
    whole = scorer(media=media, prompts=PROMPTS)
    rows = [scorer(media=media[i : i + 1], prompts=PROMPTS[i : i + 1]) for i in range(len(media))]
    torch.testing.assert_close(whole.value, torch.cat([r.value for r in rows]), equal_nan=True)
    for name, part in whole.parts.items():
        torch.testing.assert_close(part, torch.cat([r.parts[name] for r in rows]), equal_nan=True)


def test_it_is_deterministic(model, media):
    first, second = (model.load(device=CPU)(media=media, prompts=PROMPTS).value for _ in range(2))
    assert torch.equal(first.nan_to_num(), second.nan_to_num())


def test_it_leaves_the_pixels_alone(model, media):
    before = media.pixels.clone()
    model.load(device=CPU)(media=media, prompts=PROMPTS)
    assert torch.equal(media.pixels, before)


def test_gradients_reach_the_pixels_if_and_only_if_declared(model, media):
    pixels = media.pixels.requires_grad_()
    value = model.load(device=CPU)(media=Media(pixels), prompts=PROMPTS).value
    assert value.requires_grad == model.differentiable
    if model.differentiable:
        value.sum().backward()
        assert pixels.grad.abs().sum() > 0
