"""Consistency and flicker: VBench's formulas, what stands still, and what cannot be asked."""

from __future__ import annotations

import pytest
import torch

from reward_models.base import Media, RewardError
from reward_models.clip_family.consistency import Consistency, alike
from reward_models.measures.flicker import Flicker
from tests.support.tiny_rewards import clip_folder

CPU = torch.device("cpu")
ROUNDING = 1e-6


def test_frames_are_compared_with_the_one_before_and_the_first() -> None:
    """Of three unit vectors: 0 and 90 degrees apart, then 135 from the first, whose cosine counts as 0."""
    half = 0.5**0.5
    features = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-3.0, 3.0]], [[1.0, 0.0], [half, half], [1.0, 0.0]]])
    expected = [((0 + 0) / 2 + (half + 0) / 2) / 2, ((half + half) / 2 + (half + 1) / 2) / 2]
    assert alike(features).tolist() == pytest.approx(expected, abs=ROUNDING)


def test_what_stands_still_is_consistent_to_either_network(tmp_path, tiny_rewards) -> None:
    frame = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))
    media = Media(torch.stack([frame.expand(3, -1, -1, -1), torch.stack([frame, 1 - frame, frame.flip(1)])]))
    for model in (tiny_rewards("consistency"), Consistency("background", str(clip_folder(tmp_path)))):
        still, changing = model.load(device=CPU)(media=media, prompts=["", ""]).value.tolist()
        assert still == pytest.approx(1, abs=ROUNDING)
        assert changing < still - 100 * ROUNDING


def test_flicker_is_the_mean_difference_of_neighbours() -> None:
    levels = torch.tensor([0.0, 0.5, 0.25]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 4, 4)
    scored = Flicker().load(device=CPU)(media=Media(levels), prompts=[""])
    assert scored.value.tolist() == pytest.approx([1 - (0.5 + 0.25) / 2], abs=ROUNDING)


def test_pictures_are_refused(tiny_rewards) -> None:
    for model in (Flicker(), tiny_rewards("consistency")):
        with pytest.raises(RewardError, match="compares the frames of a clip, got pictures"):
            model.load(device=CPU)(media=Media(torch.zeros(1, 1, 3, 8, 8)), prompts=[""])
