"""UnifiedReward asks in the words it is given and reads what comes back, for one sample and for two."""

from __future__ import annotations

import math

import pytest
import torch

from reward_models.base import Media, RewardError, load_reward
from reward_models.judges.unified_reward import UnifiedReward as Pairwise
from reward_models.judges.yes_token import YesToken
from reward_models.vlm_rewards.unified_reward import UnifiedReward
from tests.reward_models.vlm_rewards.test_reward_dance import CPU, EXACT, grey
from tests.support.bright_vlm import STRENGTH, BrightVlm

FORMS = {
    "sentence": "Well. Image % is better.",
    "think": "<think>Image 1 is better</think><answer>Image % is better</answer>",
    "flex": '{"winner": "Image %", "categories": [{"cat_winner": "Image %"}]}',
}


def compare(judge, prompts=("light", "light")):
    first, second = Media(grey(0.9, 0.1)), Media(grey(0.2, 0.3))
    return judge.load(device=CPU)(first=first, second=second, prompts=prompts)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_says_which_is_better(form):
    assert compare(Pairwise(BrightVlm(written=FORMS[form]), form)).tolist() == [1.0, 0.0]


def test_shares_are_probabilities():
    text = "".join(f"{axis} Score:\n Image 1: 0.7\n Image 2: 0.3\n" for axis in ("Alignment", "Coherence", "Style"))
    torch.testing.assert_close(compare(Pairwise(BrightVlm(written=text), "shares")), torch.tensor([0.7, 0.7]))


@pytest.mark.parametrize("form", [*FORMS, "shares"])
def test_what_cannot_be_read_is_no_verdict(form):
    assert compare(Pairwise(BrightVlm(written="I would rather not say."), form)).isnan().all()


def test_it_asks_in_the_words_of_a_file(tmp_path):
    file = tmp_path / "question.txt"
    file.write_bytes(b"Caption: [{prompt}]  \r\nWhich {one}?\n")
    vlm = BrightVlm(written=FORMS["sentence"])
    compare(Pairwise(vlm, "sentence", template=str(file)), prompts=("a <|fox|>", "b"))
    first, second, text = vlm.asked[0].pieces
    assert text == "Caption: [a < |fox|>]  \r\nWhich {one}?"
    assert first.mean() > second.mean()


@pytest.mark.parametrize("content", [None, b"Which one?", b"\xff\xfe{prompt}"])
def test_a_file_that_is_no_question(tmp_path, content):
    file = tmp_path / "question.txt"
    if content is not None:
        file.write_bytes(content)
    for model in (Pairwise(BrightVlm(), template=str(file)), UnifiedReward(BrightVlm(), template=str(file))):
        with pytest.raises(RewardError, match=r"question\.txt"):
            model.check(())


def test_our_own_words_name_every_axis():
    vlm = BrightVlm()
    compare(Pairwise(vlm, "shares", axes=("Mood", "Light")))
    assert "Mood, Light" in vlm.asked[0].pieces[-1]


def test_marks_are_put_on_the_unit_interval():
    text = "Alignment Score (1-5): 5\nCoherence Score (1-5): 3\nStyle Score (1-5): 1"
    rewards = load_reward(UnifiedReward(BrightVlm(written=text)), device=CPU)(media=Media(grey(0.5)), prompts=["light"])
    assert rewards.value.tolist() == [0.5]
    assert {name: part.item() for name, part in rewards.parts.items()} == {"Alignment": 5, "Coherence": 3, "Style": 1}


def test_a_clip_that_is_thinned_out_is_shown_at_its_own_speed():
    vlm, clip = BrightVlm(written="Alignment Score: 4"), Media(torch.zeros(1, 15, 3, 4, 4), fps=10.0)
    load_reward(UnifiedReward(vlm), device=CPU)(media=clip, prompts=["light"])
    Pairwise(vlm, "sentence").load(device=CPU)(first=clip, second=clip, prompts=["light"])
    assert [question.fps for question in vlm.asked] == [5.0, 5.0]  # 8 of 15 frames: every other one


def test_a_missing_mark_is_no_score():
    rewards = load_reward(UnifiedReward(BrightVlm(written="Alignment Score: 4")), device=CPU)(
        media=Media(grey(0.5)), prompts=["light"]
    )
    assert math.isnan(rewards.value.item())
    assert rewards.parts["Alignment"].item() == 4


def test_yes_token_compares():
    odds = STRENGTH * torch.tensor([0.7, -0.2])
    torch.testing.assert_close(compare(YesToken(BrightVlm())), odds.sigmoid(), **EXACT)
    assert compare(YesToken(BrightVlm(mass=0.01))).isnan().all()


@pytest.mark.parametrize("model", [Pairwise(BrightVlm()), UnifiedReward(BrightVlm()), YesToken(BrightVlm())])
@pytest.mark.parametrize("prompt", ["", "x" * 10_000])
def test_prompts_that_cannot_be_judged(model, prompt):
    with pytest.raises(RewardError, match="prompt"):
        model.check([prompt])
