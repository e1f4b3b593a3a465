"""GenEval: 150 scenes with the verdicts of the benchmark's own code, its language, and the path from pixels."""

import json
from dataclasses import replace

import pytest
import torch

from reward_models.base import Media, RewardError
from reward_models.verifiers.geneval import _cut_out
from reward_models.verifiers.geneval_rules import COLOURS, OBJECTS, Clause, Wish, judge, parse, relations
from reward_models.verifiers.instances import Instance
from tests.support.tiny_rewards import FIXTURES

CPU = torch.device("cpu")
SCENES = json.loads((FIXTURES / "golden_geneval.json").read_text(encoding="utf-8"))
ROUNDING = 1e-9


def wish_of(told):
    include = [
        Clause(c["class"], c["count"], c.get("color"), tuple(c["position"]) if "position" in c else None)
        for c in told["include"]
    ]
    return Wish(tuple(include), tuple(Clause(c["class"], c["count"]) for c in told.get("exclude", ())))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene["meta"]["prompt"])
def test_prompts_and_verdicts_are_the_benchmarks(scene):
    wish = parse(scene["meta"]["prompt"])
    assert wish == wish_of(scene["meta"])
    found = {kind: sorted(objects, key=lambda one: -one[4]) for kind, objects in scene["detections"].items()}
    verdict = judge(wish, found, lambda kind, count: [one[5] for one in found[kind][:count]])
    assert (verdict.correct, verdict.strict) == (scene["correct"], scene["strict"])
    assert verdict.dense == pytest.approx(scene["dense"], abs=ROUNDING)


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_object_can_be_asked_for(kind):
    article = "an" if kind[0] in "aeiou" else "a"
    assert parse(f"a photo of {article} {kind}") == Wish((Clause(kind),))
    assert parse(f"A photo of a {COLOURS[0]} {kind}.") == Wish((Clause(kind, colour=COLOURS[0]),))


@pytest.mark.parametrize(
    ("plural", "kind"),
    [
        ("knives", "knife"),
        ("buses", "bus"),
        ("sheep", "sheep"),
        ("scissors", "scissors"),
        ("benches", "bench"),
        ("teddy bears", "teddy bear"),
    ],
)
def test_plurals_are_understood(plural, kind):
    assert parse(f"a photo of three {plural}") == Wish((Clause(kind, 3),), (Clause(kind, 4),))


def test_an_orange_is_a_fruit_and_may_be_orange():
    assert parse("a photo of an orange") == Wish((Clause("orange"),))
    assert parse("a photo of an orange orange and a red car") == Wish(
        (Clause("orange", colour="orange"), Clause("car", colour="red"))
    )


@pytest.mark.parametrize(
    "prompt", ["a dog", "a photo of a unicorn", "a photo of five dogs", "a photo of a mauve dog", "a photo of"]
)
def test_other_languages_are_refused(tiny_rewards, prompt):
    with pytest.raises(RewardError, match="prompts of GenEval's kinds"):
        tiny_rewards("geneval").check([prompt])


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((0, 40, 10, 50), {"left of"}),
        ((90, 40, 100, 50), {"right of"}),
        ((45, 0, 55, 10), {"above"}),
        ((45, 90, 55, 100), {"below"}),
        ((0, 0, 10, 10), {"left of", "above"}),
        ((46, 46, 56, 56), set()),
    ],
)
def test_directions_are_seen_from_the_other_object(box, said):
    assert relations(box, (45, 45, 55, 55)) == said


def test_crops_are_cut_out_on_grey():
    picture, mask = torch.ones(3, 6, 8), torch.zeros(6, 8, dtype=torch.bool)
    mask[2:4, 3:6] = True
    mask[2, 3] = False
    crop = _cut_out(picture, Instance(0.9, (3, 2, 6, 4), mask))
    assert crop.shape == (3, 2, 3)
    assert crop[:, 0, 0].tolist() == pytest.approx([0.6] * 3)
    assert crop.sum() == pytest.approx(3 * (5 + 0.6))


def test_the_colour_of_an_object_is_one_of_ten(tiny_rewards):
    scorer = tiny_rewards("geneval").load(device=CPU)
    one = Instance(0.9, (0, 0, 20, 10), torch.ones(10, 20, dtype=torch.bool))
    assert set(scorer._colours(torch.rand(3, 10, 20), "dog", [one, one])) <= set(COLOURS)


def test_objects_are_found_surest_first(tiny_rewards):
    detector = tiny_rewards("geneval").load(device=CPU).detector
    found = detector(torch.rand(3, 40, 60), least=0.1)
    assert found, "the tiny detector is sure of nothing, so this test shows nothing"
    for objects in found.values():
        assert [one.score for one in objects] == sorted((one.score for one in objects), reverse=True)
        for one in objects:
            left, top, right, bottom = one.box
            assert one.mask.shape == (40, 60)
            assert one.mask.sum() == one.mask[top:bottom, left:right].sum()


def test_each_verdict_can_be_the_score(tiny_rewards):
    media, prompts = Media(torch.rand(2, 1, 3, 40, 40)), ["a photo of a dog", "a photo of two cats"]
    for verdict in ("dense", "strict", "correct"):
        rewards = replace(tiny_rewards("geneval"), verdict=verdict).load(device=CPU)(media=media, prompts=prompts)
        assert torch.equal(rewards.value, rewards.parts[verdict])
        assert set(rewards.parts) == {"dense", "strict", "correct"}


def test_another_model_is_no_detector(tiny_rewards):
    folder = FIXTURES / "tinyqwen2vl"
    with pytest.raises(RewardError, match="'qwen2_vl', expected 'mask2former'"):
        replace(tiny_rewards("geneval"), detector=str(folder)).load(device=CPU)
