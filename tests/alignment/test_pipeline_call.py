"""What pipelines hand back and raise, in the words of this package."""

import pytest
import torch

from alignment.errors import ForwardProcessError, PipelineError
from alignment.pipeline_call import as_clips, output, same_states
from samplers import ReplayMismatch

FRAMES = torch.rand(2, 3, 3, 8, 8)
"""Two clips of three frames; frames before channels."""


def test_pipelines_answer_with_a_tuple_or_without_one():
    assert output((FRAMES, None)) is FRAMES
    assert output(FRAMES) is FRAMES


@pytest.mark.parametrize("channels_first", [False, True])
def test_clips_have_frames_before_channels(channels_first):
    made = FRAMES[:, :2].transpose(1, 2) if channels_first else FRAMES[:, :2]
    assert torch.equal(as_clips(made), FRAMES[:, :2])
    assert torch.equal(as_clips(list(made)), FRAMES[:, :2])


def test_a_picture_is_a_clip_of_one_frame():
    assert torch.equal(as_clips(FRAMES[:, 0]), FRAMES[:, :1])
    with pytest.raises(PipelineError, match=r"hands back \[2, 4, 8, 8\]"):
        as_clips(torch.rand(2, 4, 8, 8))


@pytest.mark.parametrize(
    ("own", "error", "says"),
    [(True, ForwardProcessError, "object changes the states"), (False, PipelineError, "object did not come by")],
)
def test_another_state_is_explained(own, error, says):
    with pytest.raises(error, match=says), same_states(object(), own=own):
        raise ReplayMismatch("round 1 met another state")
