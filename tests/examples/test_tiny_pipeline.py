import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from evals.drawing import KINDS, draw, draw_dataset, sample_scene
from examples.tiny_pipeline.measure import grades, sample_pictures
from examples.tiny_pipeline.parts import TEXT_LENGTH, new_pipeline, new_vae
from examples.tiny_pipeline.train_flux import encode_pictures, train_flux
from examples.tiny_pipeline.train_vae import train_vae
from examples.tiny_pipeline.word_tokenizers import clip_tokenizer, t5_tokenizer
from reward_models.verifiers.scenes import WORDS, parse, single_captions, split_of

ROOT = Path(__file__).parents[2]
ASSET = ROOT / "assets" / "tiny_flux"
TEXT = "two red circles left of a blue square"


@pytest.fixture(scope="module")
def shipped():
    return FluxPipeline.from_pretrained(ASSET, torch_dtype=torch.float32, local_files_only=True)


def test_the_reader_agrees_with_the_renderer():
    pictures, scenes = draw_dataset(600, seed=5)
    assert {scene.kind for scene in scenes} == set(KINDS)
    strict, graded = grades(scenes, pictures).mean(0)
    assert strict >= 0.98
    assert graded >= 0.98
    shuffled, _ = grades(scenes[1:] + scenes[:1], pictures).mean(0)
    assert shuffled < 0.05


def test_no_caption_of_dev_or_test_is_drawn_for_training():
    _, scenes = draw_dataset(500, seed=6)
    assert {split_of(scene) for scene in scenes} == {"train"}


def test_drawing_repeats_with_its_seed():
    (first, _), (second, _) = draw_dataset(5, seed=7), draw_dataset(5, seed=7)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_every_split_can_be_drawn(kind):
    rng = np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        scene = sample_scene(rng, kind, split)
        assert (scene.kind, split_of(scene)) == (kind, split)
        assert draw(scene, rng).shape == (32, 32, 3)


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
def test_every_word_is_one_token_and_the_longest_caption_fits(make):
    tokenizer = make(WORDS, TEXT_LENGTH)
    special = 2 if make is clip_tokenizer else 1
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 1 + special
    assert len(tokenizer(TEXT).input_ids) == len(TEXT.split()) + special <= TEXT_LENGTH


def test_tokenizers_are_the_same_in_every_process(shipped):
    code = (
        "from examples.tiny_pipeline.word_tokenizers import clip_tokenizer, t5_tokenizer\n"
        "from reward_models.verifiers.scenes import WORDS\n"
        f"print([make(WORDS, {TEXT_LENGTH})({TEXT!r}).input_ids for make in (clip_tokenizer, t5_tokenizer)])"
    )
    here = [make(WORDS, TEXT_LENGTH)(TEXT).input_ids for make in (clip_tokenizer, t5_tokenizer)]
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert there == f"{here}\n"
    assert [t(TEXT).input_ids for t in (shipped.tokenizer, shipped.tokenizer_2)] == here


def test_the_asset_is_small():
    assert sum(file.stat().st_size for file in ASSET.rglob("*") if file.is_file()) <= 6e6
    assert (ROOT / "examples" / "tiny_pipeline" / "samples.png").stat().st_size < 1e5


def test_the_asset_is_a_flux_pipeline_that_draws(shipped):
    assert type(shipped) is FluxPipeline
    captions = single_captions("train")[:16]
    pictures = sample_pictures(shipped, captions, seed=0, steps=4)
    assert pictures.shape == (16, 32, 32, 3)
    # Far below what was measured (see the example's README): enough to tell a trained pipeline from a broken one.
    assert grades([parse(caption) for caption in captions], pictures)[:, 1].mean() > 0.4


def test_its_pictures_are_finite(shipped):
    shipped.set_progress_bar_config(disable=True)
    pictures = shipped(
        ["a red circle"],
        height=32,
        width=32,
        num_inference_steps=2,
        max_sequence_length=TEXT_LENGTH,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert pictures.isfinite().all()


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_prompt_files_hold_their_split(split):
    assert (ROOT / "assets" / "prompts" / f"shapes_{split}.txt").read_text().splitlines() == single_captions(split)


def test_both_trainings_run():
    torch.manual_seed(0)
    pictures, scenes = draw_dataset(40, seed=8)
    vae = train_vae(torch.from_numpy(pictures), steps=2)
    pipe = new_pipeline(vae)
    latents = encode_pictures(vae, torch.from_numpy(pictures))
    assert latents.std().item() == pytest.approx(1, abs=0.02)
    before = pipe.transformer.proj_out.weight.clone()
    assert train_flux(pipe, latents, [scene.caption for scene in scenes], cpu_seconds=0.1) >= 1
    assert not torch.equal(pipe.transformer.proj_out.weight, before)


def test_a_new_transformer_predicts_zero():
    pipe = new_pipeline(new_vae())
    assert not pipe.transformer.proj_out.weight.any()
