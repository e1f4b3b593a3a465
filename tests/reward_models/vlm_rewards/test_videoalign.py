"""VideoAlign: adapters folded in as PEFT does, frames chosen as its authors do, one number at each marked token."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn

from reward_models.base import Media, RewardError
from reward_models.vlm_rewards.qwen2vl import instruction, merged
from tests.support import videoreward_by_hand
from tests.support.tiny_rewards import FIXTURES, QWEN, golden

CPU = torch.device("cpu")
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def model(tiny_rewards):
    return tiny_rewards("videoalign")


@pytest.fixture(scope="module")
def scorer(model):
    return model.load(device=CPU)


def clip(frames, *, fps=8.0):
    return Media(torch.rand(1, frames, 3, 30, 40, generator=torch.Generator().manual_seed(0)), fps=fps)


# ---- the whole model, against its arithmetic written out in numpy ----------------------------------------------------

PARITY = 3e-5  # measured 6e-6, float32 against float64
DIGITS = 1e-9  # float64 against itself on another machine
CAPTIONS = ("a red kite over the sea", "two dogs run to the left, then stop")
MARKS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")


def waves(seed):
    """Return six frames `[6, 280, 364, 3]` uint8, of a size that needs no resizing."""
    draw = np.random.default_rng(seed)
    t, y, x = np.mgrid[0:6, 0:280, 0:364]
    rates, phases = draw.uniform(-0.2, 0.2, (3, 3)), draw.uniform(0, 6.28, 3)
    shades = [np.sin(a * x + b * y + 9 * c * t + phase) for (a, b, c), phase in zip(rates, phases, strict=True)]
    return np.round(127.5 + 127.5 * np.stack(shades, -1)).astype(np.uint8)


def recomputed(model, row):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    pieces = "<|video_pad|>" * (2 * 10 * 13)  # two pairs of frames, 10 x 13 squares of 28 pixels
    asked = instruction("videoalign").replace("{text_prompt}", CAPTIONS[row])
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{pieces}<|vision_end|>{asked}<|im_end|>\n<|im_start|>assistant\n"
    )
    state = torch.load(Path(model.weights) / "checkpoint-1" / "model.pth", weights_only=True)
    place, *marks = tokenizer.convert_tokens_to_ids(["<|video_pad|>", *MARKS])
    chosen = waves(row)[[0, 2, 3, 5]]  # four of six frames, evenly, by hand
    arrays = {name: value.double().numpy() for name, value in state.items()}
    return videoreward_by_hand.scores(arrays, chosen, tokenizer(text).input_ids, place=place, marks=marks)


@pytest.mark.long  # attention over 4,000 letters, head by head, in float64
def test_the_stored_scores_are_those_of_the_arithmetic(model):
    found = [recomputed(model, row) for row in range(len(CAPTIONS))]
    if os.environ.get("REWRITE_GOLDEN"):
        (FIXTURES / "golden_videoalign_tiny.json").write_text(json.dumps({"scores": found}) + "\n", encoding="utf-8")
    np.testing.assert_allclose(found, golden("videoalign_tiny")["scores"], atol=DIGITS, rtol=0)
    assert np.std(found, axis=0).min() > 100 * PARITY, "the two clips are told apart"


def test_it_scores_as_the_arithmetic_says(scorer):
    frames = np.stack([waves(row) for row in range(len(CAPTIONS))])
    seen = Media(torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 255, fps=4.0)
    got = scorer(media=seen, prompts=CAPTIONS).parts
    expected = torch.tensor(golden("videoalign_tiny")["scores"], dtype=torch.float32)
    torch.testing.assert_close(
        torch.stack([got[name] for name in ("VQ", "MQ", "TA")], 1), expected, atol=PARITY, rtol=0
    )


# ---- its parts -------------------------------------------------------------------------------------------------------


def test_adapters_are_folded_in_as_peft_does():
    plain = nn.ModuleDict({"model": nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(5, 4)})})
    lora = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["a"], init_lora_weights=False)
    adapted = peft.get_peft_model(plain, lora)
    got = merged("videoalign", {key: value.clone() for key, value in adapted.state_dict().items()}, scale=2.0)
    expected = adapted.merge_and_unload().state_dict()
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, atol=ROUNDING, rtol=0)


def test_an_adapter_without_a_weight_is_refused():
    with pytest.raises(RewardError, match="without what it belongs to"):
        merged("videoalign", {"base_model.model.a.lora_A.default.weight": torch.zeros(2, 3)}, scale=1.0)


def test_the_instruction_is_the_one_it_was_trained_with():
    text = instruction("videoalign")
    assert len(text) == 3997
    assert hashlib.sha256(text.encode()).hexdigest().startswith("fdb6309b")


@pytest.mark.parametrize(
    ("frames", "fps", "seen"),
    [
        (16, 8.0, [0, 5, 10, 15]),
        (49, 8.0, [0, 4, 9, 13, 17, 22, 26, 31, 35, 39, 44, 48]),
        (3, 8.0, [0, 2]),
        (2, 30.0, [0, 1]),
    ],
)
def test_two_frames_a_second_are_looked_at_and_at_least_four(scorer, frames, fps, seen):
    assert scorer._chosen(clip(frames, fps=fps)).tolist() == seen


def test_the_score_is_the_sum_of_the_normalised_dimensions(model, scorer):
    whole = scorer(media=clip(4), prompts=["a cat"])
    assert set(whole.parts) == {"VQ", "MQ", "TA"}
    torch.testing.assert_close(whole.value, sum(whole.parts.values()), atol=ROUNDING, rtol=0)
    one = replace(model, dimensions=("MQ",)).load(device=CPU)(media=clip(4), prompts=["a cat"])
    torch.testing.assert_close(one.value, whole.parts["MQ"], atol=ROUNDING, rtol=0)


def test_without_norms_the_scores_are_raw(model, scorer, tmp_path):
    told = json.loads((Path(model.weights) / "model_config.json").read_text())
    norms = told.pop("inference_config")
    (tmp_path / "checkpoint-1").symlink_to(Path(model.weights) / "checkpoint-1")
    (tmp_path / "model_config.json").write_text(json.dumps(told))
    raw = replace(model, weights=str(tmp_path)).load(device=CPU)(media=clip(2), prompts=["a cat"]).parts
    normalised = scorer(media=clip(2), prompts=["a cat"]).parts
    for name, part in raw.items():
        expected = (part - norms[f"{name}_mean"]) / norms[f"{name}_std"]
        torch.testing.assert_close(normalised[name], expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(("media", "says"), [(clip(1), "at least 2 frames"), (clip(4, fps=None), "frames per second")])
def test_pictures_and_clips_of_unknown_speed_are_refused(scorer, media, says):
    with pytest.raises(RewardError, match=says):
        scorer(media=media, prompts=["a cat"])


def test_unknown_dimensions_are_refused(model):
    with pytest.raises(RewardError, match="dimensions are some of VQ, MQ, TA"):
        replace(model, dimensions=("VQ", "XX"))


def test_a_folder_without_settings_is_refused(model, tmp_path):
    with pytest.raises(RewardError, match="not a file on this machine"):
        replace(model, weights=str(tmp_path)).load(device=CPU)
    (tmp_path / "model_config.json").write_text("{}")
    (tmp_path / "checkpoint-1").symlink_to(Path(model.weights) / "checkpoint-1")
    with pytest.raises(RewardError, match=r"not VideoAlign's model_config\.json"):
        replace(model, weights=str(tmp_path)).load(device=CPU)
