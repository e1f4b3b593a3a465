"""What judges write, and that nothing else passes for a verdict."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_models.vlm_rewards import written_answers
from reward_models.vlm_rewards.written_answers import FIRST, SECOND, TIE

NONE = math.nan
AXES = ("Alignment", "Style")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Image 1 is better", FIRST),
        ("video 2 IS better.", SECOND),
        ("Both images are equally good.", TIE),
        ("Image 1 is better in colour.\nAll in all, **Image 2 is better**.\n\n", SECOND),
        ("Image 1 is better, no, Image 2 is better", NONE),
        ("Image 1 is not better", NONE),
        ("Image 3 is better", NONE),
        ("", NONE),
        ("I cannot say.", NONE),
    ],
)
def test_sentences(text, value):
    assert written_answers.sentence(text) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>Image 2 is better?</think><answer>Image 1 is better</answer>", FIRST),
        ("<answer>Image 1 is better</answer> wait <answer>\nVideo 2 is better\n</answer>", SECOND),
        ("<think>Image 2 is better</think>", NONE),
        ("<answer>Image 2 is better", NONE),
        ("<answer>Image 2</answer>", NONE),
    ],
)
def test_answers(text, value):
    assert written_answers.answer(text) == pytest.approx(value, nan_ok=True)


def shares(first: object, second: object, axis: str = "Alignment") -> str:
    return f"{axis} Score:\n Image 1: {first}\n Image 2: {second}\n\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (shares(0.75, 0.25) + shares(0.25, 0.75, "Style"), 0.5),
        (shares(0.6, 0.4) + shares(1, 0, "Style"), 0.8),
        (shares(0.6, 0.4), NONE),
        (shares(0.6, 0.6) + shares(1, 0, "Style"), NONE),
        (shares(1.4, -0.4) + shares(1, 0, "Style"), NONE),
        (shares("X", "Y") + shares(1, 0, "Style"), NONE),
    ],
)
def test_shares(text, value):
    assert written_answers.shares(text, AXES) == pytest.approx(value, nan_ok=True)


def flex(winner: object, *categories: object) -> str:
    return json.dumps({"winner": winner, "categories": [{"name": "x", "cat_winner": one} for one in categories]})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (flex("Image 1"), FIRST),
        (f"Here it is:\n```json\n{flex('Video 2', 'Video 2')}\n```", SECOND),
        (flex("Image 1", "Image 2", "Image 2"), 0.5),
        (flex("Image 1", "Image 2", "gibberish", "Image 1"), 0.75),
        (flex("Image 1", "Image 1", "Image 1", "Image 1", "Image 2"), FIRST),
        (flex("tie"), TIE),
        (flex("both Image 1 and Image 2"), TIE),
        (flex("the left one"), NONE),
        (flex(1), NONE),
        (flex(None, "Image 1"), NONE),
        ("{", NONE),
        ("[]", NONE),
        ('{"winner": "Image 1"', NONE),
        ("{" * 100_000, NONE),
    ],
)
def test_reports(text, value):
    assert written_answers.report(text, 0.5) == pytest.approx(value, nan_ok=True)


def test_categories_can_be_left_out():
    assert written_answers.report(flex("Image 1", "Image 2"), 0.0) == FIRST


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Alignment Score (1-5): 2.5\nStyle Score (1-5): 4", [2.5, 4]),
        ("Alignment Score: 1, then Alignment Score: 5. Style Score:3", [5, 3]),
        ("Alignment Score (1-5): 2.5", [2.5, NONE]),
        ("Alignment Score (1-5): 0\nStyle Score (1-5): 6", [NONE, NONE]),
        ("Alignment Score (1-5): X", [NONE, NONE]),
    ],
)
def test_marks(text, value):
    assert written_answers.marks(text, AXES) == pytest.approx(value, nan_ok=True)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    for value in (
        written_answers.sentence(text),
        written_answers.answer(text),
        written_answers.shares(text, AXES),
        written_answers.report(text, 0.5),
        *written_answers.marks(text, AXES),
    ):
        assert math.isnan(value) or 0 <= value <= 5
