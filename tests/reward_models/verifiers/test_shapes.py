import sys
from itertools import chain

import numpy as np
import pytest
import torch

from reward_models.base import Media, RewardError, RewardModel
from reward_models.verifiers.scenes import (
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    SIDE,
    Group,
    Scene,
    Sight,
    coverage,
    grade,
    parse,
    read,
    single_captions,
    split_of,
)
from reward_models.verifiers.shapes import Shapes

CPU = torch.device("cpu")
BACK = np.array((24, 24, 32), np.float32)


def picture(*objects):
    """Draw (colour, shape, x, y) objects of size 8; `[32, 32, 3]` float levels."""
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    out = np.tile(BACK, (SIDE, SIDE, 1))
    for colour, shape, x, y in objects:
        alpha = coverage(shape, axis - x, axis[:, None] - y, 8.0)[..., None]
        out += alpha * (np.array(COLOURS[colour], np.float32) - out)
    return out


def media(*pictures):
    return Media(torch.from_numpy(np.stack(pictures)).float().div(255).permute(0, 3, 1, 2)[:, None])


def row(count, colour="red", shape="circle"):
    return picture(*[(colour, shape, x, y) for x, y in ((8, 8), (24, 8), (8, 24), (24, 24))[:count]])


def score(caption, *pictures, **fields):
    return Shapes(**fields).load(device=CPU)(media=media(*pictures), prompts=[caption] * len(pictures))


def test_caption_and_scene_are_each_others_inverse():
    groups = [Group(n + 1, c, s) for n in range(len(COUNTS)) for c in COLOURS for s in SHAPES]
    for first in groups:
        assert parse(str(first)) == Scene((first,))
        for relation in (None, *RELATIONS):
            scene = Scene((first, Group(1, "white" if first.colour == "red" else "red", "square")), relation)
            assert parse(scene.caption) == scene


@pytest.mark.parametrize(
    "caption", ["", "a cat", "red circle", "four red circles", "two red circle", "a red circle and", "a pink square"]
)
def test_a_caption_outside_the_language_is_refused_with_the_language(caption):
    with pytest.raises(RewardError, match="COUNT COLOUR SHAPE"):
        score(caption, row(1))


def test_two_groups_of_one_kind_are_refused():
    with pytest.raises(RewardError, match="make them differ"):
        score("a red circle and two red circles", row(3))


def test_case_and_spaces_do_not_matter():
    assert parse("  Two RED   circles ") == parse("two red circles")


def test_splits_are_apart_and_balanced():
    splits = {name: single_captions(name) for name in ("train", "dev", "test")}
    assert {name: len(captions) for name, captions in splits.items()} == {"train": 36, "dev": 9, "test": 9}
    assert sorted(chain.from_iterable(splits.values())) == sorted(single_captions())
    for name in ("dev", "test"):
        groups = [parse(caption).groups[0] for caption in splits[name]]
        assert {(g.count, g.shape) for g in groups} == {(n, s) for n in (1, 2, 3) for s in SHAPES}
        assert {g.colour for g in groups} == set(COLOURS)
    assert split_of(parse("a green circle")) == "test"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_reader_finds_what_is_there(colour, shape):
    (sights,) = read(picture((colour, shape, 9.3, 10.0), (colour, shape, 22.0, 21.6))[None])
    assert [(s.colour, s.shape) for s in sights] == [(colour, shape)] * 2
    np.testing.assert_allclose([(s.x, s.y) for s in sights], [(9.3, 10.0), (22.0, 21.6)], atol=0.3)


def test_an_empty_picture_a_speck_and_a_blob():
    speck = picture()
    speck[3:5, 3:6] = 255
    bar = picture()
    bar[10:13, 2:30] = COLOURS["red"]
    full = np.broadcast_to(np.array(COLOURS["blue"], np.float32), (SIDE, SIDE, 3))
    nothing, noise, long, everything = read(np.stack([picture(), speck, bar, full]))
    assert nothing == noise == []
    assert [(s.colour, s.shape) for s in long] == [("red", None)]
    assert [(s.colour, s.shape) for s in everything] == [("blue", None)]


def test_known_pictures_have_their_known_scores():
    result = score("two red circles", row(2), row(2, "blue"), row(2, "red", "square"), row(2, "blue", "square"), row(0))
    assert result.parts["strict"].tolist() == [1, 0, 0, 0, 0]
    torch.testing.assert_close(result.parts["graded"], torch.tensor([1, 0.7, 0.7, 0, 0]))
    torch.testing.assert_close(result.value, torch.tensor([1, 0.35, 0.35, 0, 0]))


def test_one_too_many_costs_what_one_too_few_costs():
    one, two, three, four = score("two red circles", row(1), row(2), row(3), row(4)).parts["graded"].tolist()
    assert one == three == 0.75
    assert (two, four) == (1, 0.5)
    one, _, three = score("two red circles", row(1), row(2), row(3), symmetric=False).parts["graded"].tolist()
    assert three > one


def test_the_weight_of_strict():
    assert score("two red circles", row(3), strict=1.0).value.tolist() == [0]
    assert score("two red circles", row(3), strict=0.0).value.tolist() == [0.75]
    with pytest.raises(RewardError, match="strict"):
        Shapes(strict=1.5)


@pytest.mark.parametrize(
    ("relation", "x", "y"), [("left of", -8, 0), ("right of", 8, 0), ("above", 0, -8), ("below", 0, 8)]
)
def test_relations_hold_one_way_only(relation, x, y):
    shown = picture(("red", "circle", 16 + x, 16 + y), ("blue", "square", 16 - x, 16 - y))
    assert score(f"a red circle {relation} a blue square", shown).parts["strict"].tolist() == [1]
    wrong = score(f"a blue square {relation} a red circle", shown)
    assert wrong.parts["strict"].tolist() == [0]
    torch.testing.assert_close(wrong.parts["graded"], torch.tensor([0.7]))


def test_swapped_counts_are_not_the_scene():
    scene = parse("two red circles and a blue square")
    sights = [Sight("red", "circle", 1, 1), Sight("blue", "square", 2, 2), Sight("blue", "square", 3, 3)]
    strict, graded = grade(scene, sights)
    assert strict == 0
    assert graded == pytest.approx(0.5 * 2 / 3 + 0.5)


def test_larger_pictures_are_averaged_down_and_clips_over_frames():
    small = media(row(2), row(3))
    large = Media(small.pixels.repeat_interleave(2, -1).repeat_interleave(2, -2))
    clip = Media(small.pixels.transpose(0, 1))
    scorer = Shapes().load(device=CPU)
    prompts = ["two red circles"] * 2
    apart = scorer(media=small, prompts=prompts).value
    assert torch.equal(scorer(media=large, prompts=prompts).value, apart)
    assert torch.equal(scorer(media=clip, prompts=prompts[:1]).value, apart.mean(0, keepdim=True))
    with pytest.raises(RewardError, match="33"):
        scorer(media=Media(torch.zeros(1, 1, 3, 33, 33)), prompts=prompts[:1])


def calls(work):
    """Return how many functions `work` calls: how long that takes differs from machine to machine, this does not."""
    count = 0

    def look(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_it_is_a_reward_model_and_calls_little():
    assert isinstance(Shapes(), RewardModel)
    pictures = np.stack([row(n % 4) for n in range(256)])
    few, many = (calls(lambda n=n: read(pictures[:n])) for n in (4, 256))
    assert many - few < 20 * (256 - 4)  # 4.5 a picture
