"""ImageReward against the scores that its authors' package gave the same weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models.base import RewardError
from reward_models.loading.preprocess import pil_begins_with_columns
from tests.support.named_weights import PROMPTS, picture
from tests.support.tiny_rewards import golden, media

pytestmark = pytest.mark.filterwarnings("ignore:imagereward reads 35 tokens")

CPU = torch.device("cpu")
PARITY = 1e-5  # measured 1e-6
TALL = 2


@pytest.fixture(scope="module")
def model(tiny_rewards):
    return tiny_rewards("imagereward")


@pytest.fixture(scope="module")
def scorer(model):
    return model.load(device=CPU)


def as_scored(number):
    """Return the picture as the package saw it: it ran on PIL 13; where that is installed nothing is to be done."""
    levels = picture(number)
    height, width = levels.shape[:2]
    if number == TALL and not pil_begins_with_columns((height, width), (224 * height // width, 224)):
        columns = Image.fromarray(levels).resize((width, 224 * height // width), Image.Resampling.BICUBIC)
        levels = np.asarray(columns.resize((224, columns.height), Image.Resampling.BICUBIC)).copy()
    return media(levels)


@pytest.mark.parametrize("number", range(4))
def test_it_scores_as_the_authors_package(scorer, number):
    got = [scorer(media=as_scored(number), prompts=[text]).value.item() for text in PROMPTS]
    assert got == pytest.approx(
        [golden("imagereward_tiny")["scores"][str(row)][number] for row in range(4)], abs=PARITY
    )


def test_it_reads_prompts_as_the_authors_package(scorer):
    ids = scorer.tokenizer(list(PROMPTS), padding="max_length", truncation=True, max_length=35).input_ids
    assert ids == golden("imagereward_tiny")["ids"]


def test_an_unknown_weight_is_refused(model, tmp_path):
    state = torch.load(model.weights, weights_only=True)
    torch.save({**state, "blip.itm_head.weight": torch.zeros(2)}, tmp_path / "more.pt")
    with pytest.raises(RewardError, match=r"unexpected: blip\.itm_head\.weight"):
        replace(model, weights=str(tmp_path / "more.pt")).load(device=CPU)


@pytest.mark.parametrize(
    "part", ["blip.visual_encoder.norm.weight", "blip.text_encoder.encoder.layer.1.", "mlp.layers.7."]
)
def test_a_missing_weight_is_refused(model, tmp_path, part):
    state = torch.load(model.weights, weights_only=True)
    torch.save({key: value for key, value in state.items() if not key.startswith(part)}, tmp_path / "less.pt")
    with pytest.raises(RewardError, match="of another architecture or incomplete; missing"):
        replace(model, weights=str(tmp_path / "less.pt")).load(device=CPU)


def test_a_configuration_of_something_else_is_refused(model, tmp_path):
    (tmp_path / "med.json").write_text(json.dumps({"layers": 3}))
    with pytest.raises(RewardError, match="not a text encoder's configuration"):
        replace(model, med_config=str(tmp_path / "med.json")).load(device=CPU)


def test_half_precision_scores_are_close_and_float32(model, scorer):
    half = replace(model, dtype="bfloat16").load(device=CPU)
    one = media(picture(3))
    got, exact = (s(media=one, prompts=[PROMPTS[0]]).value for s in (half, scorer))
    assert got.dtype == torch.float32
    assert abs(got - exact) < 0.05
