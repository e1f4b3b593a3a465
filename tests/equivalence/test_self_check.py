"""Pipelines that keep something from round to round, and pipelines that no replay is exact for."""

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from alignment.batches import Batch
from alignment.errors import ForwardProcessError, PipelineError
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.base import Choice
from tests.policies import CASES, PROMPTS, build, log_ratio, perturb, plan, replayed, transitions

RATIO = 1e-6


def answered_by(policy, change):
    """Let `change(answer)` stand between the denoiser and the pipeline."""
    policy.denoiser.register_forward_hook(lambda module, args, out: (change(out[0]),))
    return policy


@pytest.fixture
def fresh(flux_folder):
    return build(flux_folder, CASES["flux"], prepare=False)


def momentum(policy):
    """Keep an average of answers over the rounds of a call, as some guidance does."""
    kept = {}

    def change(v):
        before = kept.get("v") if kept.get("round", 0) < policy._stand_in._conductor.round else None
        usable = before is not None and before.shape == v.shape
        kept.update(v=v.detach() if not usable else 0.5 * before + v.detach(), round=policy._stand_in._conductor.round)
        return v if not usable else v + 0.3 * before

    return change


def test_a_pipeline_with_a_memory_is_replayed_with_its_network_in_every_round(fresh):
    policy = answered_by(fresh, momentum(fresh))
    policy.prepare(PROMPTS)
    assert not policy.stubs
    perturb(policy)
    _, batch = transitions(policy, plan(policy, FlowSDE(), Choice((1, 2), (1, 2)), share_prefix=False))
    for k, velocity in enumerate(replayed(policy, batch)):
        assert log_ratio(batch, k, velocity).exp().sub(1).abs().max() <= RATIO


def test_steps_between_that_were_random_cannot_be_replayed_with_a_memory(fresh):
    policy = answered_by(fresh, momentum(fresh))
    policy.prepare(PROMPTS)
    _, batch = transitions(policy, plan(policy, FlowSDE(), Choice((0, 1, 2), (0, 2)), share_prefix=False))
    with pytest.raises(PipelineError, match="round 2 met another state"):
        replayed(policy, batch)


def test_other_pipelines_go_without_their_network(fresh):
    fresh.prepare(PROMPTS)
    assert fresh.stubs


def test_a_pipeline_that_never_repeats_itself_is_refused(fresh):
    generator = torch.Generator().manual_seed(0)
    policy = answered_by(fresh, lambda v: v + torch.randn(v.shape, generator=generator))
    with pytest.raises(PipelineError, match=r"FluxPipeline cannot be trained: its 3\. round does not come out again"):
        policy.prepare(PROMPTS)


@pytest.mark.parametrize("error", [KeyError("height"), AttributeError("no dtype"), IndexError("out of range")])
def test_what_a_pipeline_raises_is_one_line(fresh, error):
    def call(self, prompt, height=None, width=None, num_inference_steps=1, **_):
        raise error

    fresh.pipe.__class__ = type("Odd", (FluxPipeline,), {"__call__": call})
    with pytest.raises(PipelineError, match=r"policy\.call: Odd cannot be called with these arguments: \w+Error: "):
        fresh.prepare(PROMPTS)


def test_a_decoder_that_refuses_is_named(fresh, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("decoding without tiling")

    monkeypatch.setattr(fresh.pipe.vae, "decode", refuse)
    with pytest.raises(PipelineError, match=r"policy\.call, policy\.decode: FluxPipeline .* decoding without tiling"):
        fresh.prepare(PROMPTS)


def test_a_pipeline_that_changes_its_states_learns_from_its_own_steps_only(sd15_folder):
    white, middle = Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32))
    middle.paste(255, (8, 8, 24, 24))
    call = {**CASES["sd15"], "image": white, "mask_image": middle}
    policy = build(sd15_folder, call, pipeline_class="StableDiffusionInpaintPipeline")
    rows = torch.arange(2)
    x = torch.randn(2, *policy.probed[1].shape[1:])
    with pytest.raises(ForwardProcessError, match=r"changes the states it is handed.*clipped_surrogate can"):
        policy.visit(
            Batch(PROMPTS[:1] * 2, rows, rows, rows), [(x, torch.full((2,), 0.5))], lambda k, v: None, grad=False
        )
