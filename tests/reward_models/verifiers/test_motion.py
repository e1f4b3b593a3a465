import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.tiny_video.draw_clips import FRAMES, draw
from reward_models.base import Media, RewardError, RewardModel
from reward_models.verifiers.motion import Motion
from reward_models.verifiers.movements import (
    DIRECTIONS,
    MIN_TRAVEL,
    Movement,
    follow,
    grade,
    movements,
    parse,
    split_of,
)
from reward_models.verifiers.scenes import BACKGROUND, COLOURS, SHAPES, SIDE

CPU = torch.device("cpu")
SMALLEST_MOTION = 0.99  # of a drawn clip: what the reader takes for drift is the pixel grid, under 1 % of the travel
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
PARTS = ("strict", "graded", "direction", "object", "motion")

every_movement = st.sampled_from(movements())
seeds = st.integers(0, 2**32 - 1)


def clip(movement, seed=0, centred=False):
    return draw(movement, np.random.default_rng(seed), centred=centred)


def judged(movement, *clips):
    return [grade(movement, track) for track in follow(np.stack(clips))]


def media(*clips):
    return Media(torch.from_numpy(np.stack(clips)).float().div(255).permute(0, 1, 4, 2, 3), fps=8.0)


def score(caption, *clips, **fields):
    return Motion(**fields).load(device=CPU)(media=media(*clips), prompts=[caption] * len(clips))


def turned(movement, direction):
    return Movement(movement.colour, movement.shape, direction)


def test_caption_and_movement_are_each_others_inverse():
    assert [parse(movement.caption) for movement in movements()] == movements()
    assert parse("  A RED   circle moves Left ") == Movement("red", "circle", "left")


@pytest.mark.parametrize(
    "caption",
    ["", "a red circle", "two red circles move left", "a red circle moves", "a red circle goes left",
     "a pink circle moves left", "a red cat moves left", "a red circle moves north", "a red circle moves left now"],
)  # fmt: skip
def test_a_caption_outside_the_language_is_refused_with_the_language(caption):
    with pytest.raises(RewardError, match="a COLOUR SHAPE moves DIRECTION"):
        score(caption, clip(movements()[0]))
    with pytest.raises(RewardError, match="one of red, green"):
        Motion().check([movements()[0].caption, caption])


def test_a_long_caption_is_quoted_in_part():
    with pytest.raises(RewardError) as caught:
        Motion().check(["x" * 4000])
    assert len(str(caught.value)) < 400


def test_splits_are_apart_and_balanced():
    splits = {name: movements(name) for name in ("train", "dev", "test")}
    assert {name: len(found) for name, found in splits.items()} == {"train": 48, "dev": 12, "test": 12}
    assert {m for found in splits.values() for m in found} == set(movements())
    for name in ("dev", "test"):
        assert {(m.shape, m.direction) for m in splits[name]} == {(s, d) for s in SHAPES for d in DIRECTIONS}
        assert len({m.colour for m in splits[name]}) == len(SHAPES)
    objects = [{(m.colour, m.shape) for m in found} for found in splits.values()]
    assert sum(map(len, objects)) == len(set.union(*objects)) == len(COLOURS) * len(SHAPES)
    assert {m.colour for m in splits["train"]} == set(COLOURS)
    assert split_of(parse("a red circle moves left")) == "test"


@given(every_movement, seeds, st.booleans())
@settings(max_examples=60)
def test_a_drawn_clip_is_perfect(movement, seed, centred):
    (found,) = judged(movement, clip(movement, seed, centred))
    assert (found.strict, found.direction, found.object) == (1, 1, 1)
    assert found.motion > SMALLEST_MOTION


@given(every_movement, seeds)
@settings(max_examples=30)
def test_any_other_direction_is_wrong(movement, seed):
    shown = clip(movement, seed)
    for other in DIRECTIONS.keys() - {movement.direction}:
        (found,) = judged(turned(movement, other), shown)
        assert (found.strict, found.direction, found.object) == (0, 0, 1)
        assert found.motion < 1 - SMALLEST_MOTION


@given(every_movement, seeds)
@settings(max_examples=30)
def test_a_mirror_turns_left_into_right_and_leaves_up_and_down(movement, seed):
    mirrored = clip(movement, seed)[:, :, ::-1]
    sideways = movement.direction in ("left", "right")
    seen = turned(movement, OPPOSITE[movement.direction] if sideways else movement.direction)
    (found,) = judged(seen, mirrored)
    assert found.strict == 1


@given(every_movement, seeds)
@settings(max_examples=30)
def test_time_run_backwards_turns_every_direction(movement, seed):
    (found,) = judged(turned(movement, OPPOSITE[movement.direction]), clip(movement, seed)[::-1])
    assert found.strict == 1


@given(every_movement, seeds, st.integers(0, FRAMES - 1))
@settings(max_examples=30)
def test_a_still_clip_does_not_move(movement, seed, frame):
    still = np.repeat(clip(movement, seed)[frame : frame + 1], FRAMES, axis=0)
    for direction in DIRECTIONS:
        (found,) = judged(turned(movement, direction), still)
        assert (found.strict, found.direction, found.object, found.motion) == (0, 0, 1, 0)
        assert found.graded == 0.5


@given(every_movement, seeds, seeds)
@settings(max_examples=30)
def test_frames_out_of_order_do_not_move_steadily(movement, seed, order):
    shown = clip(movement, seed)
    shuffled = shown[np.random.default_rng(order).permutation(FRAMES)]
    straight, mixed = judged(movement, shown, shuffled)
    # A shuffle may leave frames nearly in order, and whole pixels alone make a straight path less than straight.
    assert mixed.motion <= straight.motion + 1e-3
    assert mixed.object == 1


def test_known_clips_have_their_known_scores():
    asked = parse("a red circle moves left")
    shown = [asked, turned(asked, "right"), Movement("blue", "circle", "left"), Movement("red", "square", "left")]
    empty = np.full((FRAMES, SIDE, SIDE, 3), BACKGROUND, np.uint8)
    found = score(asked.caption, *map(clip, shown), empty).parts
    assert found["strict"].tolist() == [1, 0, 0, 0, 0]
    assert found["direction"].tolist() == [1, 0, 1, 1, 0]
    assert found["object"].tolist() == [1, 1, 0.5, 0.5, 0]
    torch.testing.assert_close(found["motion"], torch.tensor([1.0, 0, 1, 1, 0]), atol=0.01, rtol=0)


def test_the_weight_of_strict():
    asked, other = parse("a red circle moves left"), clip(parse("a blue circle moves left"))
    assert score(asked.caption, clip(asked), strict=1.0).value.tolist() == [1]
    assert score(asked.caption, other, strict=1.0).value.tolist() == [0]
    assert score(asked.caption, other, strict=0.0).value.item() == pytest.approx(0.75, abs=0.01)
    with pytest.raises(RewardError, match="strict"):
        Motion(strict=-0.1)


def test_a_short_way_a_slant_and_a_leap_are_not_the_motion():
    asked = parse("a red square moves right")
    frame = clip(asked, centred=True)[0]
    short = np.stack([np.roll(frame, k // 4, axis=1) for k in range(FRAMES)])
    slant = np.stack([np.roll(frame, (k, k), axis=(0, 1)) for k in range(FRAMES)])
    leap = np.stack([np.roll(frame, 8 * (k > 4), axis=1) for k in range(FRAMES)])
    for found in judged(asked, short, slant, leap):
        assert (found.strict, found.direction) == (0, 0)
        assert found.motion < 0.8
    assert judged(asked, leap)[0].motion == 0
    assert 0 < judged(asked, short)[0].motion < MIN_TRAVEL


def test_two_objects_or_none_in_too_many_frames_have_no_direction():
    asked = parse("a red circle moves down")
    shown = clip(asked)
    empty = np.broadcast_to(np.array(BACKGROUND, np.uint8), shown.shape[1:])
    for gone, moves in ((2, 1), (3, 0)):
        holed = shown.copy()
        holed[:gone] = empty
        (found,) = judged(asked, holed)
        assert (found.strict, found.direction) == (0, moves)
        assert found.object == pytest.approx(1 - gone / FRAMES)


def test_larger_frames_are_averaged_down_and_a_picture_does_not_move():
    asked = parse("a green triangle moves up")
    small = media(clip(asked))
    large = Media(small.pixels.repeat_interleave(2, -1).repeat_interleave(2, -2), small.fps)
    scorer = Motion().load(device=CPU)
    for name in PARTS:
        parts = [scorer(media=shown, prompts=[asked.caption]).parts[name] for shown in (small, large)]
        assert torch.equal(*parts)
    still = scorer(media=Media(small.pixels[:, :1]), prompts=[asked.caption])
    assert (still.parts["motion"].item(), still.parts["object"].item()) == (0, 1)
    with pytest.raises(RewardError, match="33 x 32"):
        scorer(media=Media(torch.zeros(1, 9, 3, 33, 32)), prompts=[asked.caption])


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
    assert isinstance(Motion(), RewardModel)
    clips = np.stack([clip(movement) for movement in movements()])
    few, many = (calls(lambda n=n: follow(clips[:n])) for n in (4, len(clips)))
    assert many - few < 200 * (len(clips) - 4)  # 99 a clip
