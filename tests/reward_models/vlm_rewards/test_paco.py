"""Consistency of pictures: cells of a grid, frames of a clip, an edit and its source."""

from __future__ import annotations

import pytest
import torch

from reward_models.base import Media, RewardError, load_reward
from reward_models.vlm_rewards.paco import Paco
from tests.reward_models.vlm_rewards.test_reward_dance import CPU, EXACT, grey
from tests.support.bright_vlm import STRENGTH, BrightVlm


def score(model: Paco, media: Media):
    return load_reward(model, device=CPU)(media=media, prompts=["a fox"] * len(media))


def odds(*differences: float):
    return (STRENGTH * torch.tensor(differences)).sigmoid()


def quarters(*levels: float):
    """Return one picture of four grey cells."""
    cells = torch.tensor(levels).view(1, 1, 1, 2, 2)
    return cells.repeat_interleave(4, 3).repeat_interleave(4, 4).expand(-1, -1, 3, -1, -1)


def test_all_pairs_of_a_grid_are_averaged():
    rewards = score(Paco(BrightVlm(), grid=(2, 2)), Media(quarters(0.1, 0.2, 0.5, 0.9)))
    pairs = odds(-0.1, -0.4, -0.8, -0.3, -0.7, -0.4)
    torch.testing.assert_close(rewards.value, pairs.mean()[None], **EXACT)
    torch.testing.assert_close(rewards.parts["least"], pairs.min()[None], **EXACT)


def test_frames_are_pictures():
    clip = torch.cat([grey(0.2), grey(0.6)], 1)
    torch.testing.assert_close(score(Paco(BrightVlm()), Media(clip)).value, odds(-0.4), **EXACT)
    both = score(Paco(BrightVlm(), both_orders=True), Media(clip)).value
    torch.testing.assert_close(both, torch.tensor([0.5]), **EXACT)


def test_an_edit_is_asked_two_questions():
    vlm = BrightVlm()
    rewards = score(Paco(vlm), Media(grey(0.3), source=Media(grey(0.8))))
    torch.testing.assert_close(rewards.value, odds(0.5), **EXACT)  # the geometric mean of two equal answers
    texts = [question.pieces[-1] for question in vlm.asked]
    assert ["a fox" in text for text in texts] == [False, True]


def test_one_picture_alone_cannot_be_consistent():
    with pytest.raises(RewardError, match="nothing to compare it with"):
        score(Paco(BrightVlm()), Media(grey(0.3)))


def test_a_grid_finer_than_the_picture():
    with pytest.raises(RewardError, match="cannot be cut"):
        score(Paco(BrightVlm(), grid=(9, 1)), Media(grey(0.3)))


def test_answers_that_are_neither_word_are_no_score():
    assert score(Paco(BrightVlm(mass=0.05), grid=(2, 2)), Media(quarters(0.1, 0.2, 0.5, 0.9))).value.isnan().all()


def test_gradients_reach_the_pixels():
    pixels = quarters(0.1, 0.2, 0.5, 0.9).clone().requires_grad_()
    score(Paco(BrightVlm(), grid=(2, 2)), Media(pixels)).value.sum().backward()
    assert pixels.grad.abs().sum() > 0
