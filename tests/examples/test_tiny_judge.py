"""The tiny model that ships sees what is in a picture, and the scripts that made it and its pairs run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from alignment.config import build, overlay
from alignment.training.judges.pairs import pixels_of, read_pairs
from alignment.training.judges.trainer import JudgeTrainer, JudgeTraining
from evals.drawing import draw
from examples.tiny_judge.build import accuracy, checked, learn, scenes
from examples.tiny_judge.pairs import spoiled, write_pairs
from examples.tiny_judge.parts import network, processor
from reward_models.base import Media, load_reward
from reward_models.verifiers.scenes import COLOURS, COUNTS, SHAPES, Group, Scene, parse, split_of
from reward_models.vlm_rewards.questions import Task
from reward_models.vlm_rewards.reward_dance import RewardDance
from reward_models.vlms.local import Local, LocalReader

ROOT = Path(__file__).parents[2]
ASSET = ROOT / "assets" / "tiny_vlm"
JUDGE = ROOT / "assets" / "tiny_judge"
CPU = torch.device("cpu")
LARGEST = 3_000_000  # bytes that the asset may take in the repository


@pytest.fixture(scope="module")
def reader() -> LocalReader:
    return Local(str(ASSET), batch_size=64).load(device=CPU)


def test_the_asset_is_small():
    assert sum(file.stat().st_size for folder in (ASSET, JUDGE) for file in folder.iterdir()) < LARGEST


def test_the_asset_names_what_it_sees(reader):
    count, colour, shape = accuracy(reader, *scenes(np.random.default_rng(7), 100))
    assert colour > 0.95
    assert count > 0.85
    assert shape > 1 / 3


def test_the_judge_that_ships_prefers_what_people_would(tmp_path):
    """On captions that occur in no pair it learnt from; 86 % of 300 pairs were right when it was made."""
    write_pairs(tmp_path, "unseen", "dev", 80, seed=5)
    pairs = read_pairs(str(tmp_path / "unseen.jsonl"))
    task = Task(instruction="", criteria=())
    model = RewardDance(Local(str(ASSET), str(JUDGE), batch_size=64), task=task)
    scorer, prompts = load_reward(model, device=CPU), [pair.prompt for pair in pairs]
    chosen, rejected = (
        scorer(media=Media(torch.stack([pixels_of(p) for p in pictures])), prompts=prompts).value
        for pictures in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    assert (chosen > rejected).float().mean() > 0.7


def test_every_word_of_the_language_is_one_token(reader):
    words = reader.processor.tokenizer
    for word in (*COUNTS, *COLOURS, *SHAPES, "yes", "no"):
        assert len(words.tokenize(f" {word}")) == 1


def test_the_vocabulary_is_the_same_in_every_process(reader):
    assert processor().tokenizer.get_vocab() == reader.processor.tokenizer.get_vocab()


def test_learning_takes_a_step():
    made = processor()
    reader = LocalReader(Local("here", batch_size=64), network(made.tokenizer).train(), made)
    before = {name: p.detach().clone() for name, p in reader.model.named_parameters()}
    rng = np.random.default_rng(0)
    assert learn(reader, *scenes(rng, 8), rng, seconds=0.1) >= 1
    assert any(not torch.equal(before[name], p) for name, p in reader.model.named_parameters())


def test_words_are_checked_truthfully():
    rng = np.random.default_rng(0)
    told = checked("two red circles", rng).split()
    assert {word for word, answer in zip(told[::2], told[1::2], strict=True) if answer == "yes"} == {
        "two",
        "red",
        "circle",
    }


def test_a_spoiled_scene_has_one_wrong_word():
    rng = np.random.default_rng(0)
    scene = Scene((Group(2, "red", "circle"),))
    wrong = [spoiled(scene, rng).groups[0] for _ in range(60)]
    kinds = {(g.count != 2, g.colour != "red", g.shape != "circle") for g in wrong}
    assert kinds == {(True, False, False), (False, True, False), (False, False, True)}
    assert draw(spoiled(scene, rng), rng).shape == (32, 32, 3)


def test_pairs_can_be_learnt_from(tmp_path):
    write_pairs(tmp_path, "train", "train", 4, seed=0)
    pairs = read_pairs(str(tmp_path / "train.jsonl"))
    assert {split_of(parse(pair.prompt)) for pair in pairs} == {"train"}
    assert json.loads((tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])["chosen"].endswith(".png")
    recipe = overlay.override(
        overlay.read(ROOT / "examples" / "tiny_judge" / "judge.yaml"),
        [f"pairs={tmp_path / 'train.jsonl'}", "held_out=null", f"reward.vlm.model={ASSET}", "batch=4"],
    )
    trainer = JudgeTrainer(build.build(JudgeTraining, recipe), CPU)
    assert trainer.step(0, pairs)["grad_norm"] > 0
