"""Models of this process: three families by the generic classes, pictures and clips, batched, differentiable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, Qwen2Config, Qwen2ForCausalLM

from reward_models.base import RewardError
from reward_models.vlms.base import CUE, Question
from reward_models.vlms.local import Local, LocalReader
from tests.support.other_vlms import OTHERS, save_other_vlm
from tests.support.tiny_vlms import FAMILIES, save_tiny_vlm, tokenizer

CPU = torch.device("cpu")
ROUNDING = 1e-5  # of log-probabilities in float32, when a row is padded or not
SLOPE_ERROR = 0.02  # of a finite difference in float32 against the gradient; the reference measured 0.008
LEVELS = 2e-3  # of p(yes): pixels as floats against the same pixels rounded to 256 levels
SIDE = 56


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_tiny_vlm(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reader(folders: dict[str, Path], family: str) -> LocalReader:
    return Local(str(folders[family])).load(device=CPU)


def clips(rows: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def slope_of(pixels: torch.Tensor) -> torch.Tensor:
    assert pixels.grad is not None
    return pixels.grad


def asked(pixels: torch.Tensor, fps: float = 4.0) -> list[Question]:
    """Return questions of different lengths, so that a batch has to be padded."""
    return [Question((f"Is this {'very ' * row}good?\n", clip, " Say."), fps) for row, clip in enumerate(pixels)]


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_a_batch_is_its_rows(reader, frames):
    questions = asked(clips(3, frames))
    whole = reader.verdicts(questions)
    for row, question in enumerate(questions):
        alone = reader.verdicts([question])
        torch.testing.assert_close(whole.yes[row], alone.yes[0], rtol=0, atol=ROUNDING)
        torch.testing.assert_close(whole.no[row], alone.no[0], rtol=0, atol=ROUNDING)


def test_how_many_are_asked_at_once_does_not_matter(folders, family):
    questions = asked(clips(5, 1))
    one, many = (Local(str(folders[family]), batch_size=n).load(device=CPU).verdicts(questions) for n in (2, 5))
    torch.testing.assert_close(one.yes, many.yes, rtol=0, atol=ROUNDING)


def test_every_spelling_counts(reader):
    words = reader.processor.tokenizer
    spelled = {words.convert_tokens_to_ids(piece) for piece in ("yes", "Yes", "YES", "Ġyes", "ĠYes")}
    assert set(reader._yes) == spelled
    question = asked(clips(1, 1))
    batch = reader._batch(question, [""])
    probabilities = reader.model(**batch).logits[0, -1].softmax(-1)
    torch.testing.assert_close(reader.verdicts(question).yes[0].exp(), probabilities[list(spelled)].sum())


def test_two_pictures_are_told_apart(reader):
    first, second = clips(2, 1)
    there, back = (Question(("A ", a, " B ", b, " A better?"), 1.0) for a, b in ((first, second), (second, first)))
    verdicts = reader.verdicts([there, back])
    assert verdicts.yes[0] != verdicts.yes[1]


def test_all_frames_are_seen(reader):
    """A reader that resamples by a made-up rate would drop some."""
    pixels = clips(1, 8).requires_grad_()
    verdicts = reader.verdicts([Question(("Good?", pixels[0]), 2.0)])
    verdicts.yes.sum().backward()
    assert (slope_of(pixels)[0].flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("frames", [1, 2])
def test_gradients_reach_the_pixels(reader, frames):
    pixels = clips(1, frames).requires_grad_()
    reader.verdicts(asked(pixels)).log_odds.sum().backward()
    direction = slope_of(pixels).sign()
    slope = (slope_of(pixels) * direction).sum()
    step = 1e-3
    with torch.no_grad():
        up, down = (reader.verdicts(asked(pixels + sign * step * direction)).log_odds.sum() for sign in (1, -1))
    torch.testing.assert_close((up - down) / (2 * step), slope, rtol=SLOPE_ERROR, atol=0)


def test_pixels_as_floats_or_as_pictures(reader):
    pixels = clips(2, 1)
    rounded = (pixels * 255).round() / 255
    exact, levels = (reader.verdicts(asked(p)).yes.exp() for p in (pixels, rounded))
    torch.testing.assert_close(exact, levels, rtol=0, atol=LEVELS)


def test_clips_as_pictures_frame_by_frame(folders, family):
    reader = Local(str(folders[family]), clips="frames").load(device=CPU)
    batch = reader._batch(asked(clips(1, 3)), [""])
    assert "pixel_values" in batch
    assert "pixel_values_videos" not in batch


def test_large_pictures_are_scaled_down(folders, family):
    whole, small = (Local(str(folders[family]), side=side).load(device=CPU) for side in (None, 28))
    question = asked(clips(1, 1))
    assert whole.verdicts(question).yes != small.verdicts(question).yes


def test_the_likelihood_of_an_answer_is_the_product_of_its_tokens(reader):
    questions, answers = asked(clips(2, 1)), ["no, it is red", "yes"]
    found = reader.log_likelihood(questions, answers)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        pieces = reader.processor.tokenizer.tokenize(answer)
        told, total = "", 0.0
        for piece in pieces:
            index = reader.processor.tokenizer.convert_tokens_to_ids(piece)
            logits = reader.model(**reader._batch([question], [told])).logits[0, -1]
            total += logits.float().log_softmax(-1)[index]
            told += reader.processor.tokenizer.convert_tokens_to_string([piece])
        torch.testing.assert_close(found[row], total, rtol=0, atol=10 * ROUNDING)


def test_no_verdict_after_reasoning_is_no_score(reader):
    verdicts = reader.verdicts(asked(clips(2, 1)), reasoning=4)
    assert verdicts.yes.isnan().all()
    assert verdicts.no.isnan().all()


def taught(folder: Path, thought: str) -> LocalReader:
    """Return a model that has learnt to think one thought."""
    reader = Local(str(folder)).load(device=CPU)
    reader.model.requires_grad_(True)
    questions = asked(clips(2, 1))
    optimizer = torch.optim.AdamW(reader.model.parameters(), 5e-3)
    for _ in range(60):
        loss = -reader.log_likelihood(questions, [f"{thought}<|im_end|>"] * 2).mean()
        if loss < 0.1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reader.model.requires_grad_(False)
    return reader


def test_the_verdict_follows_the_reasoning(folders):
    reader = taught(folders["qwen2_vl"], f"no. {CUE} yes")
    verdicts = reader.verdicts(asked(clips(2, 1)), reasoning=24)
    assert (verdicts.yes.exp() > 0.5).all()
    forced = reader._next(asked(clips(2, 1)), [f"no. {CUE}"] * 2)
    torch.testing.assert_close(verdicts.yes, forced[0])
    short = reader.verdicts(asked(clips(2, 1)), reasoning=2)
    assert short.yes.isnan().all()


def test_a_template_that_thinks_is_told_not_to(folders, tmp_path):
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "thinking")
    for file in folder.glob("chat_template*"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}", "utf-8")
    text = Local(str(folder)).load(device=CPU)._text(asked(clips(1, 1))[0], False)
    assert not text.endswith("<think>")
    told = Local(str(folder), template={"enable_thinking": True}).load(device=CPU)
    assert told._text(asked(clips(1, 1))[0], False).endswith("<think>")


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_by_the_same_classes(family, tmp_path):
    reader = Local(str(save_other_vlm(tmp_path, family)), clips="frames").load(device=CPU)
    pixels = clips(2, 2).requires_grad_()
    whole = reader.verdicts(asked(pixels))
    alone = torch.cat([reader.verdicts([question]).yes for question in asked(pixels)])
    torch.testing.assert_close(whole.yes, alone, rtol=0, atol=ROUNDING)
    whole.log_odds.sum().backward()
    assert (slope_of(pixels).flatten(2).abs().sum(2) > 0).all()


# What cannot be a judge


def refusal(folder: Path, **more: object) -> str:
    with pytest.raises(RewardError) as caught:
        Local(str(folder), **more).load(device=CPU)
    return str(caught.value)


def test_a_folder_that_is_not_there(tmp_path):
    assert "could not be loaded" in refusal(tmp_path / "nothing")


def test_a_model_without_eyes(tmp_path):
    words = tokenizer()
    config = Qwen2Config(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    assert "for images and text" in refusal(tmp_path)


def test_a_model_without_a_mouth(tmp_path):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(text_config=small, vision_config={**small, "image_size": 32})).save_pretrained(tmp_path)
    assert "for images and text" in refusal(tmp_path)


def test_weights_that_are_not_all_there(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "lacking")
    tensors = load_file(folder / "model.safetensors")
    gone = [name for name in tensors if "layers.1.mlp" in name]
    save_file({k: v for k, v in tensors.items() if k not in gone}, folder / "model.safetensors", {"format": "pt"})
    assert "lack 3 tensors" in refusal(folder)


def test_weights_that_are_cut_short(folders, tmp_path):
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "could not be loaded" in refusal(folder)


def test_weights_in_pickles_are_not_opened(folders, tmp_path):
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "could not be loaded" in refusal(folder)


def test_no_chat_template(folders, tmp_path):
    folder = shutil.copytree(folders["qwen2_vl"], tmp_path / "mute")
    for file in folder.glob("chat_template*"):
        file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "no chat template" in refusal(folder)


def test_a_template_that_does_not_know_what_it_is_told(folders):
    assert "knows no depth" in refusal(folders["qwen2_vl"], template={"depth": 3})


def test_an_adapter_that_is_none(folders, tmp_path):
    assert "could not be loaded" in refusal(folders["qwen2_vl"], adapter=str(tmp_path))


def test_the_chance_of_an_answer_is_that_of_its_first_tokens(reader: LocalReader) -> None:
    """All spellings of yes are tokens of their own here: their chances add up to the verdict's."""
    questions = asked(clips(3, 1))
    with torch.no_grad():
        verdicts = reader.verdicts(questions)
        spelled = ["Yes", "yes", " yes", " Yes", "YES"]
        found = reader.chances(questions, [spelled, [*spelled, "yes"], ["no"]])
        alone = reader.chances(questions[2:], [["no"]])
    torch.testing.assert_close(found[:2], verdicts.yes.exp()[:2], atol=ROUNDING, rtol=ROUNDING)
    torch.testing.assert_close(found[2:], alone, atol=ROUNDING, rtol=ROUNDING)
    assert 0 < alone.item() < verdicts.no.exp()[2].item()
