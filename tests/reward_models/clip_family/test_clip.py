"""CLIP score, PickScore and the aesthetic predictor against transformers' own CLIP, and open_clip's."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPTokenizerFast

from reward_models.base import Media, RewardError
from reward_models.clip_family.aesthetic import Aesthetic
from reward_models.clip_family.clip import CLIP
from reward_models.clip_family.towers import load_hub_clip
from reward_models.loading.preprocess import CLIP_MEAN, CLIP_STD
from tests.support.named_weights import PROMPTS, filled, picture, weight
from tests.support.tiny_rewards import OPEN_CLIP, media

pytestmark = pytest.mark.filterwarnings("ignore:.* reads 77 tokens")

CPU = torch.device("cpu")
PARITY = 1e-5  # measured 1e-6 on PickScore, whose scores are a hundred times a cosine
SIDE = 32


@functools.cache
def of_transformers(folder):
    return CLIPTokenizerFast.from_pretrained(folder), CLIPModel.from_pretrained(folder)


def by_transformers(folder, number, text):
    """Return (logit, unit picture vector) by transformers' own forward pass, from the file as PIL resizes it."""
    image = Image.fromarray(picture(number))
    scale = SIDE / min(image.size)
    width, height = (int(scale * side) if side != min(image.size) else SIDE for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    levels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE))) / 255
    pixels = torch.from_numpy((levels - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).permute(2, 0, 1)[None].float()
    tokenizer, model = of_transformers(folder)
    tokens = tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        answer = model(**tokens, pixel_values=pixels)
    return answer.logits_per_image.item(), normalize(answer.image_embeds, dim=-1)


@pytest.mark.parametrize("number", range(4))
def test_scores_are_those_of_transformers(tiny_rewards, number):
    clip, pick = (tiny_rewards(name) for name in ("clip", "pickscore"))
    scorers = [kind.load(device=CPU) for kind in (clip, replace(clip, scale=None), pick)]
    for text in PROMPTS:
        logit, _ = by_transformers(clip.weights, number, text)
        cosine, learned, picked = (s(media=media(picture(number)), prompts=[text]).value.item() for s in scorers)
        assert cosine == pytest.approx(logit / scorers[0].towers.scale, abs=PARITY)
        assert [learned, picked] == pytest.approx([logit, logit], abs=PARITY)


def test_the_aesthetic_score_is_linear_in_the_picture_vector(tiny_rewards):
    model = tiny_rewards("aesthetic")
    _, vector = by_transformers(model.backbone, 0, "a cat")
    for layer in (0, 2, 4, 6, 7):
        shapes = {0: (1024, 24), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
        name = f"layers.{layer}"
        vector = vector @ weight(f"{name}.weight", shapes[layer]).T + weight(f"{name}.bias", shapes[layer][:1])
    got = model.load(device=CPU)(media=media(picture(0)), prompts=[""]).value
    torch.testing.assert_close(got, vector[0], atol=PARITY, rtol=0)


def test_version_one_of_the_aesthetic_predictor_is_one_layer(tiny_rewards, tmp_path):
    model = tiny_rewards("aesthetic")
    torch.save({"weight": weight("weight", (1, 24)), "bias": torch.tensor([3.0])}, tmp_path / "v1.pth")
    _, vector = by_transformers(model.backbone, 1, "a cat")
    got = replace(model, head=str(tmp_path / "v1.pth")).load(device=CPU)(media=media(picture(1)), prompts=[""]).value
    torch.testing.assert_close(got, vector[0] @ weight("weight", (1, 24))[0, :, None] + 3, atol=PARITY, rtol=0)


def test_a_head_for_another_backbone_is_refused(tiny_rewards, tmp_path):
    torch.save({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, tmp_path / "v1.pth")
    model = Aesthetic(head=str(tmp_path / "v1.pth"), backbone=tiny_rewards("aesthetic").backbone)
    with pytest.raises(RewardError, match="of another shape: weight"):
        model.load(device=CPU)


@pytest.fixture(scope="module")
def open_clip_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny.json").write_text(json.dumps({**OPEN_CLIP, "quick_gelu": True}))
    model = open_clip.CLIP(**OPEN_CLIP, quick_gelu=True).eval()
    model.load_state_dict(filled(model.state_dict()))
    torch.save(model.state_dict(), folder / "tiny.pt")
    return CLIP(weights=str(folder / "tiny.pt"), architecture=str(folder / "tiny.json")), model


@pytest.mark.parametrize("number", [0, 1, 3])
def test_scores_are_those_of_open_clip(open_clip_model, number):
    import open_clip

    ours, theirs = open_clip_model
    ready = open_clip.image_transform(224, is_train=False)(Image.fromarray(picture(number)))[None]
    tokens = open_clip.SimpleTokenizer()(list(PROMPTS), context_length=77)
    with torch.no_grad():
        cosines = normalize(theirs.encode_image(ready)) @ normalize(theirs.encode_text(tokens)).T
    scorer = ours.load(device=CPU)
    got = [scorer(media=media(picture(number)), prompts=[text]).value.item() for text in PROMPTS]
    assert got == pytest.approx(cosines[0].tolist(), abs=PARITY)


def test_a_clip_scores_the_mean_of_its_frames(tiny_rewards):
    scorer = tiny_rewards("clip").load(device=CPU)
    frames = torch.rand(1, 3, 3, 40, 40)
    alone = [scorer(media=Media(frames[:, i : i + 1]), prompts=["a cat"]).value for i in range(3)]
    torch.testing.assert_close(scorer(media=Media(frames), prompts=["a cat"]).value, torch.stack(alone).mean(0))


def test_scoring_in_chunks_changes_nothing(tiny_rewards):
    model, many = tiny_rewards("clip"), Media(torch.rand(5, 2, 3, 40, 40))
    prompts = ["a cat", "a dog", "a cat", "two", "b"]
    whole, parts = (
        replace(model, batch_size=size).load(device=CPU)(media=many, prompts=prompts).value for size in (32, 3)
    )
    torch.testing.assert_close(whole, parts)


def test_the_loss_falls_along_the_gradient(tiny_rewards):
    """Rounding to 8 bits has no gradient; the one that is passed through it points uphill all the same."""
    scorer = tiny_rewards("clip").load(device=CPU)
    start = torch.rand(1, 1, 3, 48, 40).mul(0.6).add(0.2).requires_grad_()
    before = scorer(media=Media(start), prompts=["a cat"]).value
    (gradient,) = torch.autograd.grad(before.sum(), start)
    step = 0.05 * gradient / gradient.abs().max()  # 13 levels where it is steepest
    moved = scorer(media=Media(start.detach() + step), prompts=["a cat"]).value
    predicted = (gradient * step).sum()
    assert moved > before
    assert (moved - before).item() == pytest.approx(predicted.item(), rel=0.25)


@pytest.mark.parametrize("change", [{"model_type": "siglip"}, {"model_type": "bert"}])
def test_a_folder_of_another_kind_is_refused(tiny_rewards, tmp_path, change):
    folder = Path(tiny_rewards("clip").weights)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(RewardError, match=f"of type {change['model_type']!r}, expected 'clip'"):
        CLIP(weights=str(tmp_path)).load(device=CPU)


def test_another_preprocessing_is_refused(tiny_rewards, tmp_path):
    folder = Path(tiny_rewards("clip").weights)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**told, "resample": 2}))
    with pytest.raises(RewardError, match="another preprocessing"):
        load_hub_clip("clip", folder, processor=tmp_path, device=CPU)
