"""Pairs in, judge out: it learns, is saved as libraries load it, and scores and trains as a reward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from alignment.cli import main as cli
from alignment.config import build
from alignment.config.run import Optimizer
from alignment.data.media import find_clip
from alignment.errors import ConfigError, DataError
from alignment.policy.networks.spec import Lora
from alignment.reports.pictures import encode_clip
from alignment.training.judges.pairs import Pair, pairs_of_step, pixels_of, read_pairs
from alignment.training.judges.session import train
from alignment.training.judges.trainer import JudgeTrainer, JudgeTraining
from reward_models.base import Media, RewardModel, load_reward
from reward_models.vlm_rewards.questions import Task
from reward_models.vlm_rewards.reward_dance import RewardDance
from reward_models.vlms.endpoint import Endpoint
from reward_models.vlms.local import Local
from tests.support.clips import written
from tests.support.runs import prepared
from tests.support.tiny_vlms import save_tiny_vlm

CPU = torch.device("cpu")
SIDE = 28
CHANCE = 0.5
LEARNT = 0.85  # on held-out pairs that differ in hue alone; 16 pairs
SAME = 1e-5  # scores of the trained model and of what was saved, with the adapter folded in
BRIEF = Task(instruction="", criteria=(), alone="Red?", against="Redder?")


def write_pairs(folder: Path, count: int, seed: int) -> str:
    """Write pairs in which red pictures are preferred to blue ones."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        names = {}
        for side, channel in (("chosen", 0), ("rejected", 2)):
            levels = rng.integers(0, 80, (SIDE, SIDE, 3))
            levels[..., channel] += rng.integers(100, 170)
            names[side] = f"{seed}-{number}-{side}.png"
            Image.fromarray(levels.astype(np.uint8)).save(folder / names[side])
        reasons = {"reason": "red.", "reason_reversed": "blue."}
        lines.append(json.dumps({"prompt": f"thing {number}", **names, **reasons}))
    file = folder / f"pairs-{seed}.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    save_tiny_vlm(folder / "vlm", "qwen2_vl")
    write_pairs(folder, 24, seed=0)
    write_pairs(folder, 16, seed=1)
    return folder


def plan_of(world: Path, **more: object) -> JudgeTraining:
    given: dict[str, object] = {
        "name": "judge",
        "reward": RewardDance(Local(str(world / "vlm")), task=BRIEF, min_mass=0.0),
        "pairs": str(world / "pairs-0.jsonl"),
        "held_out": str(world / "pairs-1.jsonl"),
        "steps": 15,
        "batch": 8,
        "microbatch": 8,
        "lora": Lora(8),
        "optimizer": Optimizer(learning_rate=5e-3),
        "output": str(world / "runs"),
    }
    return JudgeTraining(**{**given, **more})


@pytest.mark.parametrize("reference", ["none", "group"])
def test_it_learns_what_people_preferred(world, reference, tmp_path):
    plan = plan_of(world, output=str(tmp_path))
    plan = replace(plan, reward=replace(plan.reward, reference=reference))
    found = train(plan, CPU)
    assert found["final"].mean >= LEARNT
    assert found["final"].low > CHANCE
    assert found["base"].mean < found["final"].mean
    summary = json.loads((plan.folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["accuracy"]["final"]["mean"] == found["final"].mean
    lines = (plan.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(plan.steps))


def red_and_blue() -> Media:
    pixels = torch.full((2, 1, 3, SIDE, SIDE), 0.15)
    pixels[0, :, 0] = pixels[1, :, 2] = 0.7
    return Media(pixels)


@pytest.mark.parametrize("lora", [Lora(8), None], ids=["lora", "full"])
def test_what_it_learnt_is_a_reward(world, lora, tmp_path):
    rate = Optimizer(learning_rate=5e-3 if lora else 1e-3)
    plan = plan_of(world, output=str(tmp_path), lora=lora, held_out=None, optimizer=rate)
    trainer = JudgeTrainer(plan, CPU)
    pairs = read_pairs(plan.pairs)
    for step in range(plan.steps):
        trainer.step(step, pairs)
    trainer.save()
    node = yaml.safe_load(build.resolved(plan.trained, RewardModel))
    assert node["type"] == "reward_dance"
    scorer = load_reward(plan.trained, device=CPU)
    value = scorer(media=red_and_blue(), prompts=["thing", "thing"]).value
    assert value[0] > 0.5 > value[1]
    questions = trainer._questions(pairs[:2])
    learnt = trainer.reader.verdicts(questions)
    again = scorer.scorer.asker.reader.verdicts(questions)
    torch.testing.assert_close(again.yes, learnt.yes.detach(), rtol=0, atol=SAME)


def test_the_command_makes_a_reward_a_config_can_name(world, tmp_path, capsys):
    file = tmp_path / "judge.yaml"
    file.write_text(build.resolved(plan_of(world, name="made", steps=1, output=str(tmp_path / "runs"))), "utf-8")
    assert cli.run(["rewards", "train", str(file), "seed=3"]) == 0
    assert "held-out pairs right" in capsys.readouterr().out
    made = tmp_path / "runs" / "made"
    written = yaml.safe_load((made / "reward.yaml").read_text(encoding="utf-8"))
    assert written["type"] == "reward_dance"
    assert written["vlm"]["adapter"] == str(made / "adapter")
    assert yaml.safe_load((made / "config.resolved.yaml").read_text(encoding="utf-8"))["seed"] == 3
    assert cli.run(["rewards", "train", str(file)]) == 2
    assert "holds something already" in capsys.readouterr().err


def test_micro_batches_change_nothing(world):
    pairs = read_pairs(str(world / "pairs-0.jsonl"))
    norms = []
    for microbatch in (8, 3):
        trainer = JudgeTrainer(plan_of(world, microbatch=microbatch), CPU)
        norms.append(trainer.step(0, pairs)["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_the_same_seed_gives_the_same_judge(world):
    pairs = read_pairs(str(world / "pairs-0.jsonl"))
    first, second = (JudgeTrainer(plan_of(world), CPU).step(0, pairs) for _ in range(2))
    assert first == second


def test_it_learns_to_reason_first(world):
    plan = plan_of(world, optimizer=Optimizer(learning_rate=3e-3), lora=None)
    plan = replace(plan, reward=replace(plan.reward, task=replace(BRIEF, reasoning=24)))
    trainer = JudgeTrainer(plan, CPU)
    pairs = read_pairs(plan.pairs, reasoned=True)
    losses = [trainer.step(step, pairs)["loss"] for step in range(12)]
    assert losses[-1] < losses[0] / 2


def test_a_step_takes_pairs_in_turn(world):
    from alignment.data.random_streams import Draw

    pairs = read_pairs(str(world / "pairs-0.jsonl"))
    epoch = [pair for step in range(3) for pair in pairs_of_step(pairs, step, 8, Draw(0))]
    assert sorted(pair.prompt for pair in epoch) == sorted(pair.prompt for pair in pairs)


def test_pictures_become_pixels(world):
    pair = read_pairs(str(world / "pairs-0.jsonl"))[0]
    assert pixels_of(pair.chosen).shape == (1, 3, SIDE, SIDE)
    assert 0 <= pixels_of(pair.chosen).min() <= pixels_of(pair.chosen).max() <= 1


def test_clips_are_pairs_too(world):
    for name, channel in (("red", 0), ("blue", 2)):
        frames = np.zeros((4, 32, 32, 3), np.uint8)
        frames[..., channel] = 200
        (world / f"{name}.mp4").write_bytes(encode_clip([Image.fromarray(frame) for frame in frames], 8.0))
    file = world / "clips.jsonl"
    file.write_text('{"prompt": "a", "chosen": "red.mp4", "rejected": "blue.mp4"}', encoding="utf-8")
    pairs = read_pairs(str(file))
    assert pixels_of(pairs[0].chosen).shape == (4, 3, 32, 32)
    metrics = JudgeTrainer(plan_of(world, batch=1), CPU).step(0, pairs)
    assert metrics["grad_norm"] > 0
    file.write_text('{"prompt": "a", "chosen": "red.mp4", "rejected": "0-0-rejected.png"}', encoding="utf-8")
    with pytest.raises(DataError, match="a picture and a clip"):
        read_pairs(str(file))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not an object with texts under prompt, chosen, rejected"),
        ('{"prompt": "a", "chosen": "0-0-chosen.png"}', "line 2: not an object"),
        ('{"prompt": "", "chosen": "0-0-chosen.png", "rejected": "0-1-chosen.png"}', "line 2: .*empty prompt"),
        ('{"prompt": "a", "chosen": "gone.png", "rejected": "0-0-chosen.png"}', "line 2: there is no file"),
        ('{"prompt": "a", "chosen": "0-0-chosen.png", "rejected": "0-0-chosen.png"}', "line 2: .*same file"),
        ('{"prompt": "a", "chosen": "../x.png", "rejected": "0-0-chosen.png"}', "line 2: "),
    ],
)
def test_pairs_that_cannot_be_used(world, line, says):
    good = (world / "pairs-0.jsonl").read_text(encoding="utf-8").splitlines()[0]
    file = world / "bad.jsonl"
    file.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"(?s).*{says}"):
        read_pairs(str(file))


def test_reasons_are_needed_where_the_judge_reasons(world):
    file = world / "bare.jsonl"
    file.write_text('{"prompt": "a", "chosen": "0-0-chosen.png", "rejected": "0-0-rejected.png"}', encoding="utf-8")
    assert len(read_pairs(str(file))) == 1
    with pytest.raises(DataError, match="reason_reversed"):
        read_pairs(str(file), reasoned=True)


def test_descriptions_that_make_no_sense(world):
    served = RewardDance(Endpoint("http://127.0.0.1:1/v1", "judge"))
    half = RewardDance(Local("x", dtype="bfloat16"))
    begun = RewardDance(Local("x", adapter="y"))
    for wrong in ({"reward": served}, {"reward": half, "lora": None}, {"reward": begun}, {"steps": 0}):
        with pytest.raises(ConfigError):
            plan_of(world, **wrong)


def test_targets_that_bind_nothing(world):
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        JudgeTrainer(plan_of(world, lora=Lora(4, targets=("nowhere",))), CPU)


def test_a_judge_trains_a_pipeline(world, flux_folder, tmp_path):
    """The loop closes: pairs, a judge of them, a run with the judge as its reward."""
    plan = plan_of(world, steps=3, held_out=None, output=str(tmp_path))
    train(plan, CPU)
    folder = prepared(tmp_path / "work", flux_folder)
    reward = yaml.safe_load((plan.folder / "reward.yaml").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((folder / "grpo.yaml").read_text(encoding="utf-8"))
    common = yaml.safe_load((folder / "common.yaml").read_text(encoding="utf-8"))
    common["source"]["reward"] = reward
    common["steps"] = 1
    (folder / "common.yaml").write_text(yaml.safe_dump(common), encoding="utf-8")
    (folder / "grpo.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert cli.run(["train", str(folder / "grpo.yaml"), "evaluation.prompts=null"]) == 0
    line = json.loads((folder / "runs" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert 0 <= line["reward/mean"] <= 1
    assert line["reward/unscored_fraction"] == 0
    assert line["reward/mass"] > 0


def test_clips_are_shown_at_the_rate_of_their_files(world, tmp_path):
    for name, fps in {"a.mp4": 12, "b.mp4": 5}.items():
        written(tmp_path / name, [(16, 16)] * (3 + fps), fps=fps)
    sides = [find_clip(tmp_path, name) for name in ("a.mp4", "b.mp4")]
    asked = JudgeTrainer(plan_of(world), CPU)._questions([Pair("a red circle", *sides), Pair("a cat", *sides[::-1])])
    # Eight frames of fifteen are shown, and all of eight; fewer frames of a clip are shown more slowly.
    assert [question.fps for question in asked] == pytest.approx([12 * 7 / 14, 5, 5, 12 * 7 / 14])
