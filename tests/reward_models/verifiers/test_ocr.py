"""OCR: what a prompt quotes, how far that is from what can be read, and reading it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from reward_models.base import Media, RewardError
from reward_models.verifiers.ocr import OCR, edit_distance, wanted

CPU = torch.device("cpu")
TEXTS = st.text("abc", max_size=8)


@pytest.mark.parametrize(
    ("prompt", "letters"),
    [
        ('a sign that says "Open Daily"', "opendaily"),
        ("a shirt with “7 days” on it", "7days"),
        ('"one" and "two"', "one"),
        ("« Ouvert » on a door", "ouvert"),
    ],
)
def test_the_first_quotation_is_wanted(prompt, letters):
    assert wanted(prompt) == letters


@pytest.mark.parametrize("prompt", ["a sign", 'a sign "', 'an empty sign ""', 'a blank sign "  "'])
def test_a_prompt_that_quotes_nothing_is_refused(prompt):
    with pytest.raises(RewardError, match="stands in double quotes"):
        OCR().check([prompt])


@given(TEXTS, TEXTS, TEXTS)
def test_the_edit_distance_is_a_distance(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


@pytest.mark.parametrize(("a", "b", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2)])
def test_the_edit_distance_is_levenshteins(a, b, distance):
    assert edit_distance(a, b) == distance


def test_what_is_written_is_read():
    scorer = OCR(threads=1).load(device=CPU)
    sign = Image.new("RGB", (240, 80), "white")
    ImageDraw.Draw(sign).text((20, 15), "PARK", font=ImageFont.load_default(40), fill="black")
    media = Media(
        torch.from_numpy(np.asarray(sign).copy()).permute(2, 0, 1)[None, None].float().expand(3, -1, -1, -1, -1) / 255
    )
    scores = scorer(media=media, prompts=['a sign: "park"', 'a sign: "parks"', 'a sign: "zoo"']).value
    assert scores.tolist() == pytest.approx([1.0, 0.8, 0.0])
