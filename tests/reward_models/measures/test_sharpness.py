"""Sharpness and exposure, by hand."""

import math

import pytest
import torch

from reward_models.base import Media, RewardError
from reward_models.measures.exposure import Exposure
from reward_models.measures.sharpness import Sharpness

CPU = torch.device("cpu")


def score(model, picture):
    return model.load(device=CPU)(media=Media(picture[None, None]), prompts=[""]).value.item()


def test_one_bright_pixel_has_a_laplacian_one_can_write_down():
    picture = torch.zeros(3, 5, 5)
    picture[:, 2, 2] = 1
    inside = torch.tensor([0, 255, 0, 255, -1020, 255, 0, 255, 0.0])
    assert score(Sharpness(), picture) == pytest.approx(math.log10(1 + inside.var(correction=0).item()), rel=1e-4)


def test_luma_weighs_green_most():
    picture = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    red, green, blue = (score(Sharpness(), picture * torch.eye(3)[i].view(3, 1, 1)) for i in range(3))
    assert green > red > blue


@pytest.mark.parametrize(("level", "width"), [(0.5, 0.2), (0.0, 0.2), (1.0, 0.2), (0.3, 0.5)])
def test_exposure_is_a_bell_around_grey(level, width):
    expected = math.exp(-3 * (level - 0.5) ** 2 / (2 * width**2))
    assert score(Exposure(width), torch.full((3, 8, 8), level)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_a_bell_has_a_width(width):
    with pytest.raises(RewardError, match="width is positive"):
        Exposure(width)
