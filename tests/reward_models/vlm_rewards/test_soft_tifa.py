"""Soft-TIFA: questions about a prompt, and how sure a model is of their answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from reward_models.base import Media, RewardError, load_reward
from reward_models.vlm_rewards.soft_tifa import SoftTIFA, spellings
from reward_models.vlms.base import Question
from tests.reward_models.vlm_rewards.test_reward_dance import CPU, EXACT, grey
from tests.support.bright_vlm import BrightVlm
from tests.support.chat_server import chat, place, serving
from tests.support.tiny_rewards import soft_tifa

PROMPT = "two red circles"


def test_a_score_is_the_mean_of_its_answers(tmp_path: Path) -> None:
    model = soft_tifa(tmp_path)
    scorer = load_reward(model, device=CPU)
    found = scorer(media=Media(torch.cat([grey(0.2), grey(0.9)])), prompts=[PROMPT, "a green triangle"])
    torch.testing.assert_close(found.value, torch.tensor([(0.8 * 0.2) ** 0.5, 0.9]), **EXACT)
    torch.testing.assert_close(found.parts["mean"], torch.tensor([0.5, 0.9]), **EXACT)
    assert isinstance(model.vlm, BrightVlm)
    assert [question.pieces[1] for question in model.vlm.asked] == [
        "How many circles are in the image? Answer in one word.",
        "Are the circles red? Answer in one word.",
        "Is the triangle green? Answer in one word.",
    ]


def test_a_clip_that_is_thinned_out_is_shown_at_its_own_speed(tmp_path: Path) -> None:
    model = soft_tifa(tmp_path)
    load_reward(model, device=CPU)(media=Media(torch.zeros(1, 15, 3, 4, 4), fps=10.0), prompts=[PROMPT])
    assert isinstance(model.vlm, BrightVlm)
    assert [len(question.clips[0]) for question in model.vlm.asked] == [8, 8]
    assert [question.fps for question in model.vlm.asked] == [5.0, 5.0]  # every other frame


def test_counts_may_be_written_as_figures() -> None:
    assert spellings("How many dogs?", "seven") == ("seven", "Seven", "7", " seven", " Seven", " 7")
    assert spellings("How many dogs?", "a dozen") == ("a dozen", "A dozen", " a dozen", " A dozen")
    assert set(spellings("Is it red?", "Yes")) == {"Yes", "yes", " Yes", " yes"}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": PROMPT}, "a prompt or its questions are missing"),
        ({"prompt": PROMPT, "vqa_list": []}, "a prompt or its questions are missing"),
        ({"prompt": PROMPT, "vqa_list": [["Is it red?"]]}, "its questions are not pairs of texts"),
        ({"prompt": PROMPT, "vqa_list": ["Is it red?"]}, "its questions are not pairs of texts"),
        ({"prompt": PROMPT, "vqa_list": [["What colour is it?", "red"]]}, "'red', expected Yes, or a count"),
    ],
)
def test_a_line_that_cannot_be_asked_is_named(record: dict[str, object], says: str, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"prompt": "x", "vqa_list": [["Is it?", "Yes"]]}) + "\n" + json.dumps(record))
    with pytest.raises(RewardError, match=rf"soft_tifa: questions: {file}:2: .*{says}.*a line is"):
        SoftTIFA(BrightVlm(), str(file)).check([PROMPT])


def test_a_prompt_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"asked.jsonl has no questions about the prompt 'a fox'"):
        soft_tifa(tmp_path).check(["a fox"])


def test_a_served_model_is_read_by_its_likeliest_words() -> None:
    from tests.reward_models.vlms.test_endpoint import reader

    asked = [Question(("Is it red? ", grey(0.5)[0]), 1.0)]
    with serving(lambda body, n: chat(place(Yes=0.5, _yes=0.1, No=0.2, Seven=0.15))) as server:
        chances = [reader(server).chances(asked, [words]) for words in (["Yes", " yes"], ["seven", "7"], ["two"])]
    torch.testing.assert_close(torch.cat(chances), torch.tensor([0.6, 0.15, 0.0]), **EXACT)
