"""Optical flow: VBench's threshold and count, on flows that are known."""

from dataclasses import dataclass, replace

import pytest
import torch

from reward_models.base import Media, RewardError
from reward_models.measures.optical_flow import OpticalFlow, _OpticalFlowScorer

CPU = torch.device("cpu")
SIDE = 160
THRESHOLD = 6 / 256 * SIDE  # pixels between two frames


@dataclass
class Shifts:
    """A network that finds the flow written in the first pixel of its first frame."""

    def __call__(self, first, second, *, num_flow_updates):
        shift = (first[:, 0, 0, 0] + 1) / 2 * 10
        still = torch.zeros_like(first[:, :2])
        still[:, 0] = shift.view(-1, 1, 1)
        return [torch.zeros_like(still), still]


def scored(shifts, *, fps=8.0):
    pixels = (torch.tensor(shifts) / 10).view(1, -1, 1, 1, 1).expand(-1, -1, 3, SIDE, SIDE)
    return _OpticalFlowScorer(OpticalFlow(), Shifts(), CPU)(media=Media(pixels, fps=fps), prompts=[""])


def test_the_score_is_the_mean_speed_in_thresholds():
    assert scored([THRESHOLD, 2 * THRESHOLD, 0.0]).value.item() == pytest.approx(1.5, rel=1e-4)


@pytest.mark.parametrize(("moving", "dynamic"), [(4, 1.0), (3, 0.0), (0, 0.0), (15, 1.0)])
def test_a_quarter_of_the_frames_has_to_move(moving, dynamic):
    shifts = [1.1 * THRESHOLD] * moving + [0.9 * THRESHOLD] * (16 - moving)
    assert scored(shifts).parts["dynamic"].item() == dynamic


def test_frames_an_eighth_of_a_second_apart_are_compared():
    fast = scored([THRESHOLD, 9.0, 9.0] * 4, fps=24.0)
    assert fast.value.item() == pytest.approx(1.0, rel=1e-4)


def test_a_still_clip_has_a_gradient_that_is_a_number():
    pixels = torch.zeros(1, 3, 3, SIDE, SIDE, requires_grad=True)
    value = _OpticalFlowScorer(OpticalFlow(), Shifts(), CPU)(media=Media(pixels, fps=8.0), prompts=[""]).value
    (gradient,) = torch.autograd.grad(value.sum(), pixels)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("frames", "fps", "says"), [(1, 8.0, "frames of a clip"), (4, None, "frames per second")])
def test_pictures_and_clips_of_unknown_speed_are_refused(tiny_rewards, frames, fps, says):
    media = Media(torch.rand(1, frames, 3, 32, 32), fps=fps)
    with pytest.raises(RewardError, match=says):
        tiny_rewards("optical_flow").load(device=CPU)(media=media, prompts=[""])


def test_frames_are_made_fit_for_the_network(tiny_rewards):
    scorer = tiny_rewards("optical_flow").load(device=CPU)
    assert scorer._ready(torch.rand(2, 3, 30, 50)).shape == (2, 3, 128, 216)
    assert scorer._ready(torch.rand(2, 3, 131, 150)).shape == (2, 3, 136, 152)
    small = replace(tiny_rewards("optical_flow"), longest_side=256).load(device=CPU)
    assert small._ready(torch.rand(2, 3, 300, 512)).shape == (2, 3, 152, 256)


def test_weights_that_torchvision_does_not_have_are_refused():
    with pytest.raises(RewardError, match="neither a file nor weights of raft_large"):
        OpticalFlow(weights="C_T_V9").load(device=CPU)
