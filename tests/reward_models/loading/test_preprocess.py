"""Preprocessing: PIL's own resize to the last bit, with the gradient of what was not rounded."""

from importlib.metadata import version

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import cosine_similarity, interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, to_tensor
from torchvision.transforms.functional import resize as torchvision_resize

from reward_models.loading.preprocess import (
    centre_crop,
    eight_bit,
    longest_side_padded,
    normalise,
    pil_begins_with_columns,
    resize,
    resize_bytes,
    resize_in_order,
    shortest_side,
)
from tests.support.named_weights import SIZES, picture

LEVEL = 1 / 255
EXACT = LEVEL / 100  # float32 holds every level; anything beyond this is another level
SIDES = st.integers(1, 70)
PIL_13 = 13  # the first that resizes the columns of some pictures first


def pixels(levels):
    return torch.from_numpy(levels.copy()).permute(2, 0, 1)[None].float() / 255


def by_pil(levels, height, width):
    """Resize as the installed PIL does, in the order that it chooses."""
    return pixels(np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)))


def by_pil_in_order(levels, height, width, *, columns_first):
    """Resize along one side and then along the other, as every PIL does where it is asked for one at a time."""
    between = (levels.shape[1], height) if columns_first else (width, levels.shape[0])
    once = Image.fromarray(levels).resize(between, Image.Resampling.BICUBIC)
    return pixels(np.asarray(once.resize((width, height), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("size", [(224, 224), (100, 317), (336, 560)])
def test_resizing_is_what_pil_does(number, size):
    levels = picture(number)
    assert (resize(pixels(levels), *size) - by_pil(levels, *size)).abs().max() < EXACT


@settings(max_examples=60)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_resizing_noise_of_any_size_is_what_pil_does(height, width, new_height, new_width, seed):
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    got = resize(pixels(levels), new_height, new_width)
    assert (got - by_pil(levels, new_height, new_width)).abs().max() < EXACT


@settings(max_examples=30)
@given(SIDES, SIDES, SIDES, SIDES, st.booleans())
def test_both_orders_are_those_of_pil(height, width, new_height, new_width, columns_first):
    levels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    got = resize_in_order(pixels(levels), new_height, new_width, columns_first=columns_first)
    expected = by_pil_in_order(levels, new_height, new_width, columns_first=columns_first)
    assert (got - expected).abs().max() < EXACT


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_the_order_turns_where_that_of_pil_turns(number):
    """At, below and above a height that loses twice the pixels of the width; the two orders differ there by a level."""
    size, wanted = (90 + number, 58), (44, 35)
    levels = np.random.default_rng(7).integers(0, 256, (*size, 3), dtype=np.uint8)
    orders = [by_pil_in_order(levels, *wanted, columns_first=first) for first in (False, True)]
    assert (orders[0] - orders[1]).abs().max() > EXACT
    assert (resize(pixels(levels), *wanted) - by_pil(levels, *wanted)).abs().max() < EXACT
    installed = int(version("pillow").partition(".")[0])
    assert pil_begins_with_columns(size, wanted) == (installed >= PIL_13 and number == 1)


def test_a_picture_is_scored_as_the_file_it_is_saved_as():
    smooth = torch.rand(1, 3, 40, 50, dtype=torch.float32)
    saved = torch.from_numpy((smooth * 255).round().byte().numpy()).float() / 255
    assert torch.equal(eight_bit(smooth), saved)
    assert torch.equal(resize(smooth, 20, 30), resize(saved, 20, 30))


@pytest.mark.parametrize("size", [(224, 224), (364, 476), (100, 30)])
def test_bytes_are_resized_as_torchvision_does_with_a_gradient(size):
    levels = picture(1)
    bytes_ = torch.from_numpy(levels.copy()).permute(2, 0, 1)[None]
    expected = (
        torchvision_resize(bytes_, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True).float() / 255
    )
    whole = pixels(levels).requires_grad_()
    got = resize_bytes(whole, *size)
    assert (got - expected).abs().max() < EXACT
    (gradient,) = torch.autograd.grad(got.sum(), whole)
    assert gradient.sum() == pytest.approx(3 * size[0] * size[1], rel=1e-3)


@pytest.mark.parametrize("size", [(80, 64), (64, 99), (65, 64), (64, 67), (300, 64)])
def test_cropping_is_what_torchvision_and_transformers_do(size):
    from transformers.image_transforms import center_crop as transformers_crop

    whole = torch.rand(1, 3, *size)
    assert torch.equal(centre_crop(whole, 64, half_up=True), center_crop(whole, [64, 64]))
    theirs = transformers_crop(whole[0].numpy(), (64, 64), input_data_format="channels_first")
    assert torch.equal(centre_crop(whole, 64)[0], torch.from_numpy(theirs))


@pytest.mark.parametrize("number", range(4))
def test_the_shorter_side_is_resized_as_torchvision_does(number):
    levels = picture(number)
    theirs = torchvision_resize(Image.fromarray(levels), 224, interpolation=3)
    got = shortest_side(pixels(levels), 224)
    assert got.shape[-2:] == theirs.size[::-1]
    assert (got - by_pil(levels, *got.shape[-2:])).abs().max() < EXACT


@pytest.mark.parametrize(
    ("size", "inside"), [((100, 200), (112, 224)), ((90, 60), (224, 149)), ((224, 224), (224, 224))]
)
def test_padding_keeps_the_picture_in_the_middle(size, inside):
    square = longest_side_padded(torch.ones(1, 3, *size), 224)
    assert square.shape[-2:] == (224, 224)
    lit = square[0, 0] > 0.5
    rows, columns = lit.any(1).nonzero().flatten(), lit.any(0).nonzero().flatten()
    assert (len(rows), len(columns)) == inside
    assert abs(rows[0] - (223 - rows[-1])) <= 1
    assert abs(columns[0] - (223 - columns[-1])) <= 1


def test_normalising_is_by_channel():
    grey = to_tensor(Image.new("RGB", (4, 4), (128, 128, 128)))[None]
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    expected = [(128 / 255 - m) / s for m, s in zip(mean, std, strict=True)]
    torch.testing.assert_close(normalise(grey, mean, std)[0, :, 0, 0], torch.tensor(expected))


def test_the_gradient_is_that_of_smooth_resizing():
    whole = torch.rand(1, 3, 60, 80, generator=torch.Generator().manual_seed(1)).mul(0.8).add(0.1).requires_grad_()
    weights = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(2))
    (ours,) = torch.autograd.grad((resize(whole, 24, 32) * weights).sum(), whole)
    smooth = interpolate(whole, size=(24, 32), mode="bicubic", antialias=True)
    (theirs,) = torch.autograd.grad((smooth * weights).sum(), whole)
    assert cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999999
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
