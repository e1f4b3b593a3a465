"""HPSv3 against the scores that its authors' package gave the same weights."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch

from reward_models.base import Media, RewardError
from reward_models.vlm_rewards.qwen2vl import instruction
from tests.support.named_weights import PROMPTS, picture
from tests.support.tiny_rewards import golden, media

CPU = torch.device("cpu")
PARITY = 1e-5  # measured 6e-7


@pytest.fixture(scope="module")
def model(tiny_rewards):
    return tiny_rewards("hpsv3")


@pytest.fixture(scope="module")
def scorer(model):
    return model.load(device=CPU)


@pytest.mark.parametrize(
    ("row", "number"), [(row, number) if row == number else pytest.param(row, number, marks=pytest.mark.slow)
                        for row in range(4) for number in range(4)]
)  # fmt: skip
def test_it_scores_as_the_authors_package(scorer, row, number):
    got = scorer(media=media(picture(number)), prompts=[PROMPTS[row]])
    preference, log_sigma = golden("hpsv3_tiny")["scores"][row][number]
    assert [got.value.item(), got.parts["sigma"].item()] == pytest.approx([preference, math.exp(log_sigma)], abs=PARITY)


def test_a_clip_gets_the_mean_of_its_frames_and_of_their_sigmas(scorer):
    pictures = torch.stack([media(picture(3)).pixels[:, 0], 1 - media(picture(3)).pixels[:, 0]], 1)
    clip = scorer(media=Media(pictures), prompts=[PROMPTS[0]])
    alone = [scorer(media=Media(pictures[:, i : i + 1]), prompts=[PROMPTS[0]]) for i in range(2)]
    sigmas = [one.parts["sigma"].item() for one in alone]
    assert clip.value.item() == pytest.approx(sum(one.value.item() for one in alone) / 2, abs=PARITY)
    assert clip.parts["sigma"].item() == pytest.approx(sum(sigmas) / 2, abs=PARITY)
    assert min(sigmas) > 0


def test_positions_in_space_would_score_something_else(scorer):
    """What transformers 5 does by itself is further off than the parity that is asked for."""
    inputs = scorer.reader._inputs([torch.rand(1, 3, 56, 84)], [PROMPTS[0]])
    plain = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    types = (inputs["input_ids"] == scorer.reader.body.config.image_token_id).int()
    with torch.no_grad():
        ours = scorer.reader.body(**inputs, position_ids=plain).last_hidden_state
        theirs = scorer.reader.body(**inputs, mm_token_type_ids=types).last_hidden_state
    assert (ours - theirs).abs().max() > 100 * PARITY


def test_the_instruction_is_the_one_it_was_trained_with():
    text = instruction("hpsv3")
    assert hashlib.sha256(text[:2523].encode()).hexdigest().startswith("0393599d")
    assert hashlib.sha256(text[2523:].encode()).hexdigest().startswith("2471faca")


@pytest.mark.parametrize("token", ["<|Reward|>", "<|image_pad|>", "<|im_end|>"])
def test_control_tokens_in_prompts_are_refused(scorer, token):
    with pytest.raises(RewardError, match="has the control token"):
        scorer(media=media(picture(3)), prompts=[f"a cat {token}"])


def test_an_endless_strip_is_refused(scorer):
    with pytest.raises(RewardError, match="cannot look at pictures of"):
        scorer(media=media(picture(3)[:1]), prompts=["a cat"])


def test_another_base_is_refused(model, tiny_rewards):
    with pytest.raises(RewardError, match="'clip' model, expected 'qwen2_vl'"):
        replace(model, base=tiny_rewards("clip").weights).load(device=CPU)


def test_another_checkpoint_is_refused(model, tiny_rewards):
    with pytest.raises(RewardError, match="another architecture"):
        replace(model, weights=tiny_rewards("imagereward").weights).load(device=CPU)
