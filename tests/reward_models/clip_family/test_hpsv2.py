"""HPSv2 against the scores that its authors' package gave the same weights."""

from dataclasses import replace

import pytest
import torch

from reward_models.base import RewardError
from tests.support.named_weights import PROMPTS, picture
from tests.support.tiny_rewards import golden, media

pytestmark = pytest.mark.filterwarnings("ignore:hpsv2 reads 77 tokens")

CPU = torch.device("cpu")
PARITY = 1e-5  # measured 6e-8


@pytest.fixture(scope="module")
def model(tiny_rewards):
    return tiny_rewards("hpsv2")


@pytest.fixture(scope="module")
def scorer(model):
    return model.load(device=CPU)


@pytest.mark.parametrize("number", range(4))
def test_it_scores_as_the_authors_package(scorer, number):
    one = media(picture(number))
    got = [scorer(media=one, prompts=[text]).value.item() for text in PROMPTS]
    assert got == pytest.approx([golden("hpsv2_tiny")["scores"][str(row)][number] for row in range(4)], abs=PARITY)


def test_it_reads_prompts_as_the_authors_package(scorer):
    tokens = scorer.towers.tokenizer(list(PROMPTS), context_length=77)
    assert tokens.tolist() == golden("hpsv2_tiny")["tokens"]


def test_pictures_without_antialiasing_score_differently(model, scorer):
    old, one = replace(model, antialias=False).load(device=CPU), media(picture(0))
    assert abs(old(media=one, prompts=PROMPTS[:1]).value - scorer(media=one, prompts=PROMPTS[:1]).value) > PARITY


def test_the_digest_is_of_weights_and_preprocessing(model, scorer):
    again, old = (kind.load(device=CPU).provenance.sha256() for kind in (model, replace(model, antialias=False)))
    assert scorer.provenance.sha256() == again != old
    assert len(again) == 64


@pytest.mark.parametrize(
    ("architecture", "says"), [("ViT-B-32", "another architecture"), ("ViT-Z-1", "no architecture")]
)
def test_another_architecture_is_refused(model, architecture, says):
    with pytest.raises(RewardError, match=says):
        replace(model, architecture=architecture).load(device=CPU)


def test_a_long_prompt_is_cut_with_a_warning(scorer):
    with pytest.warns(UserWarning, match="hpsv2 reads 77 tokens"):
        scorer(media=media(picture(3)), prompts=[PROMPTS[3]])
