"""What pipelines hand back and raise, in the words of this package."""

import pytest
import torch

from alignment.errors import ForwardProcessError, PipelineError
from alignment.policy.pipeline_call import output, same_states
from samplers import ReplayMismatch


def test_pipelines_answer_with_a_tuple_or_without_one():
    made = torch.rand(2, 3)
    assert output((made, None)) is made
    assert output(made) is made


@pytest.mark.parametrize(
    ("own", "error", "says"),
    [
        (True, ForwardProcessError, "object changes the states"),
        (False, PipelineError, r"object did not come by .*same seeds, here 0, 1, 2, 3, \.\.\., has"),
    ],
)
def test_another_state_is_explained(own, error, says):
    with pytest.raises(error, match=says), same_states(object(), torch.arange(5), own=own):
        raise ReplayMismatch("round 1 met another state")
