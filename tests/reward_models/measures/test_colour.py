import pytest
import torch

from reward_models.base import Media, RewardError
from reward_models.measures.colour import Colour

CPU = torch.device("cpu")


def flat(*colour):
    return torch.tensor(colour, dtype=torch.float32).view(1, 1, 3, 1, 1).expand(1, 2, 3, 4, 4).clone()


@pytest.mark.parametrize(
    ("channel", "colour", "value"),
    [
        ("red", (1, 0, 0), 1),
        ("red", (0, 1, 1), -1),
        ("green", (0.2, 0.8, 0.4), 0.5),
        ("blue", (0.5, 0.5, 0.5), 0),
        ("white", (0.2, 0.4, 0.9), 0.5),
    ],
)
def test_known_colours_have_their_known_scores(channel, colour, value):
    rewards = Colour(channel).load(device=CPU)(media=Media(flat(*colour)), prompts=[""])
    torch.testing.assert_close(rewards.value, torch.tensor([float(value)]))


def test_the_gradient_is_the_weight_of_each_channel():
    pixels = flat(0.3, 0.3, 0.3).requires_grad_()
    Colour("green").load(device=CPU)(media=Media(pixels), prompts=[""]).value.sum().backward()
    torch.testing.assert_close(pixels.grad, flat(-0.5, 1, -0.5) / 32)


def test_half_precision_pixels_give_float32_scores():
    rewards = Colour().load(device=CPU)(media=Media(flat(1, 0, 0).bfloat16()), prompts=[""])
    assert rewards.value.dtype == torch.float32


def test_an_unknown_channel_is_refused():
    with pytest.raises(RewardError, match="red, green, blue"):
        Colour("yellow")
