"""One region of a picture: which pixels are seen, by value and by gradient; boxes that are none."""

import pytest
import torch

from reward_models.base import Media, RewardError, load_reward
from reward_models.combinators.cropped import Cropped
from reward_models.measures.colour import Colour
from reward_models.measures.jpeg import Jpeg

CPU = torch.device("cpu")
BOX = (0.25, 0.5, 0.75, 1.0)


def test_what_lies_outside_has_no_say():
    pixels = torch.rand(3, 2, 3, 10, 8).requires_grad_()
    scorer = load_reward(Cropped(Colour("white"), BOX), device=CPU)
    rewards = scorer(media=Media(pixels), prompts=[""] * 3)
    torch.testing.assert_close(rewards.value, pixels[..., 5:, 2:6].mean((1, 2, 3, 4)))
    rewards.value.sum().backward()
    seen = pixels.grad != 0
    assert seen[..., 5:, 2:6].all()
    assert seen.sum() == pixels[..., 5:, 2:6].numel()


def test_it_has_a_gradient_where_what_scores_has_one():
    assert Cropped(Colour(), BOX).differentiable
    assert not Cropped(Jpeg(), BOX).differentiable


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0.9, 1, 0.1), (-0.1, 0, 1, 1), (0, 0, 1.1, 1)])
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(RewardError, match="cropped: box is left, top, right, bottom from 0 to 1"):
        Cropped(Colour(), box)


def test_a_box_without_pixels_is_refused():
    scorer = load_reward(Cropped(Colour(), (0.0, 0.0, 0.01, 1.0)), device=CPU)
    with pytest.raises(RewardError, match="holds no pixel of 4 x 4"):
        scorer(media=Media(torch.rand(1, 1, 3, 4, 4)), prompts=[""])
