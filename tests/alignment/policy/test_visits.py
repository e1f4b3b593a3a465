"""The times that pipelines are offered in visits."""

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from alignment.data.batches import Batch
from alignment.policy.visits import times_offered
from samplers import read_path, stand_in_for
from samplers.stand_in.row_times import RowTimes
from samplers.stand_in.scheduler import NEARBY
from tests.support import toy
from tests.support.policies import build
from tests.support.toy import ToyNetwork, ToyPipeline

FLOW = read_path(stand_in_for(FlowMatchEulerDiscreteScheduler()))
ROWS = torch.arange(2)


@pytest.mark.parametrize("alike", [True, False])
def test_no_time_comes_twice_because_of_rounds_that_nobody_looks_at(alike):
    one = torch.tensor([0.5, 0.5]) if alike else torch.tensor([0.5, 0.25])
    offered = times_offered(FLOW, [one, one / 2], 2, 300)
    assert isinstance(offered, RowTimes) is not alike
    offered = offered.as_subclass(torch.Tensor)
    assert offered.shape == ((304,) if alike else (304, 2))
    wanted = 1000 * torch.stack([one, one / 2])
    torch.testing.assert_close(offered[2:4], wanted[:, 0] if alike else wanted)
    assert (offered[1:3].diff(dim=0) != 0).all()
    assert (offered[3:].diff(dim=0) < 0).all()
    assert (offered > 0).all()


class Leaping(ToyPipeline):
    """Tells its network where a step arrives, and leaves out one that goes nowhere."""

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps=4, generator=(), output_type="pt", return_dict=True):
        """Denoise one point a prompt."""
        self.encode_prompt(prompt)
        x = torch.stack([torch.randn(2, generator=g) for g in generator])
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            r = self.scheduler.sigmas[i + 1] * 1000
            if t == r:
                continue
            v = self.transformer(x, (t / 1000).expand(len(x))) * (1 + t - r)
            x = self.scheduler.step(v, t, x)["prev_sample"]
        return (x,) if output_type == "latent" else (toy.pixels(x).clamp(0, 1),)


diffusers.Leaping = Leaping


@pytest.mark.parametrize("kind", [ToyPipeline, Leaping])
def test_the_answer_to_a_visit_is_its_own(kind, tmp_path):
    torch.manual_seed(0)
    kind(ToyNetwork(), FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path)
    policy = build(tmp_path, {})
    batch = Batch(("a red circle",) * 2, ROWS, ROWS, ROWS)
    assert policy.row_times is (kind is ToyPipeline)
    points = [(torch.randn(2, 2), torch.full((2,), t)) for t in (0.5, 0.5, 0.9, 0.1)]
    together, alone = [], []
    policy.visit(batch, points, lambda k, v: together.append(v), grad=False)
    for point in points:
        policy.visit(batch, [point], lambda k, v: alone.append(v), grad=False)
    torch.testing.assert_close(torch.stack(together), torch.stack(alone))
    told = 1000 * NEARBY * (kind is Leaping)
    network = [policy.denoiser(x, t) * (1 + told * t[:, None]) for x, t in points]
    torch.testing.assert_close(torch.stack(together), torch.stack(network))
