"""What the demonstration of ViPO calls a region, a reward and a share."""

from __future__ import annotations

import math

import pytest
import torch

from alignment.policy.latent_grid import LatentGrid
from examples.where_credit_goes import objects, positions, redness_of_objects, share


def test_the_reward_looks_at_objects_alone() -> None:
    pixels = torch.full((3, 1, 3, 8, 8), 0.1)
    pixels[0, 0, :, 2:4, 5:7] = torch.tensor([0.9, 0.2, 0.2])[:, None, None]
    pixels[1, 0, :, 2:4, 5:7] = torch.tensor([0.2, 0.2, 0.9])[:, None, None]
    assert objects(pixels).flatten(1).sum(dim=1).tolist() == [4, 4, 0]
    red, blue, nothing = redness_of_objects(pixels, ["", "", ""])
    assert (red, blue) == (pytest.approx(0.7), pytest.approx(-0.35))
    assert math.isnan(nothing)
    pixels[0, 0, :, 6:, 6:] += 0.1  # the background does not count
    assert redness_of_objects(pixels, ["", "", ""])[0] == red


def test_energy_that_is_everywhere_has_the_share_of_the_area() -> None:
    region = torch.zeros(2, 2, 4, dtype=torch.bool)
    region[0, 0] = True
    everywhere = positions(torch.ones(2, 8, 3), LatentGrid(1, 2, 4, (8, 1)))
    assert share(everywhere, region) == 0.5  # of the one picture that has a region
    assert share(everywhere * region, region) == 1.0
