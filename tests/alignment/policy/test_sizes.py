"""Clips that do not fit what is made of them."""

import warnings
from pathlib import Path

import pytest

from alignment.data.batches import Prompt
from alignment.data.media import Clip
from alignment.errors import DataError
from alignment.policy.sizes import check_clips


def prompts(*frames):
    return [Prompt("a red circle", {"video": Clip(Path(f"{n}.mp4"), str(n), (16, 16), n)}) for n in frames]


@pytest.mark.parametrize(("frames", "call"), [((9, 9), {"num_frames": 9}), ((9, 9), {}), ((), {"num_frames": 9})])
def test_clips_as_long_as_what_is_made_of_them(frames, call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_clips({"data.prompts": prompts(*frames)}, call)


def test_clips_to_go_on_from_are_shorter_and_equally_long():
    with pytest.warns(UserWarning, match="each video has 5 of the 9 frames of policy.call.num_frames"):
        check_clips({"data.prompts": prompts(5, 5)}, {"num_frames": 9})


@pytest.mark.parametrize(
    ("frames", "call", "says"),
    [
        ((9, 5), {"num_frames": 9}, "5.mp4 has 5 frames where 9 are wanted, 4 too few"),
        ((5, 7), {"num_frames": 9}, "5.mp4 has 5 frames where 9 are wanted, 4 too few"),
        ((13, 13), {"num_frames": 9}, "13.mp4 has 13 frames where 9 are wanted, 4 too many"),
        ((5, 9), {}, "9.mp4 has 9 frames where 5 are wanted, 4 too many"),
    ],
)
def test_clips_of_other_lengths_are_refused(frames, call, says):
    with pytest.raises(DataError, match=says):
        check_clips({"data.prompts": prompts(*frames)}, call)
