"""VideoAlign: adapters folded in as PEFT does, frames chosen as its authors do, one number at each marked token."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from reward_models._qwen2vl import instruction, merged
from reward_models.base import Media, RewardError

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


@pytest.mark.parametrize(("media", "says"), [(clip(1), "at least 2 frames"), (clip(4, fps=None), "frames a second")])
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
