"""Pipelines that keep something from round to round, and pipelines that no replay is exact for."""

import inspect
import textwrap

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from alignment.data.batches import Batch
from alignment.errors import ForwardProcessError, PipelineError
from alignment.policy.between import Between
from alignment.policy.prepare import prepare
from samplers.dynamics.flow_sde import FlowSDE
from samplers.stand_in import row_times
from samplers.stand_in.row_times import RowTimes
from samplers.windows.base import Choice
from tests.support.policies import (
    CASES,
    PROMPTS,
    build,
    counted,
    learn,
    log_ratio,
    perturb,
    plan,
    replayed,
    transitions,
)

RATIO = 1e-6
GRADIENT = 1e-5
"""Relative rounding of gradients summed in another order."""
CALLS = 30
"""Of the network while a pipeline of four steps is made ready: some dozens, not hundreds."""


def answered_by(policy, change):
    """Let `change(answer)` stand between the denoiser and the pipeline."""
    policy.denoiser.register_forward_hook(lambda module, args, out: (change(out[0]),))
    return policy


@pytest.fixture
def fresh(flux_folder):
    return build(flux_folder, CASES["flux"], ready=False)


def momentum(policy):
    """Keep an average of answers over the rounds of a call, as some guidance does."""
    kept = {}

    def change(v):
        k = policy.pipe.scheduler._conductor.round
        before = kept.get("v") if kept.get("round", 0) < k else None
        usable = before is not None and before.shape == v.shape
        kept.update(v=v.detach() if not usable else 0.5 * before + v.detach(), round=k)
        return v if not usable else v + 0.3 * before

    return change


def test_a_pipeline_with_a_memory_is_replayed_with_its_network_in_every_round(fresh):
    policy = answered_by(fresh, momentum(fresh))
    prepare(policy, PROMPTS)
    assert not policy.stubs
    perturb(policy)
    _, batch = transitions(policy, plan(policy, FlowSDE(), Choice((1, 2), (1, 2)), share_prefix=False))
    for k, model_output in enumerate(replayed(policy, batch)):
        assert log_ratio(batch, k, model_output).exp().sub(1).abs().max() <= RATIO


def late(policy, first=3):
    """Add a part of the answer before, from round `first` on, as momentum of guidance does that starts late."""
    kept = {}

    def change(v):
        k, before = policy.pipe.scheduler._conductor.round, kept.get("v")
        kept["v"] = v.detach()
        return v + 0.3 * before if k >= first and before.shape == v.shape else v

    return change


def test_what_starts_in_the_last_round_is_found_out(fresh):
    policy = answered_by(fresh, late(fresh))
    prepare(policy, PROMPTS)
    assert policy.between is Between.RUN
    perturb(policy)
    _, batch = transitions(policy, plan(policy, FlowSDE(), Choice((3,), (3,)), share_prefix=False))
    (model_output,) = replayed(policy, batch)
    assert log_ratio(batch, 0, model_output).exp().sub(1).abs().max() <= RATIO


def cache(policy):
    """Add the first round's answer to later ones, graph and all, as a cache of keys and values does."""
    kept = {}

    def change(v):
        if policy.pipe.scheduler._conductor.round == 0:
            kept["v"] = v
            return v
        return v + 0.5 * kept["v"]

    return change


def test_the_gradient_of_a_cache_is_that_of_one_graph_through_all_rounds(fresh):
    policy = answered_by(fresh, cache(fresh))
    prepare(policy, PROMPTS)
    assert policy.between is Between.WHOLE
    perturb(policy)
    _, batch = transitions(policy, plan(policy, FlowSDE(), Choice((1, 2), (1, 2)), share_prefix=False))
    found = learn(policy, batch)
    losses = []
    policy.replay_whole(batch, lambda k, v: losses.append((log_ratio(batch, k, v).exp() * batch.advantage).mean()))
    wanted = torch.autograd.grad(sum(losses), list(policy.trainable.values()))
    for (name, gradient), whole in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(gradient, whole, rtol=0, atol=GRADIENT * whole.abs().max().item(), msg=name)
    with pytest.raises(ForwardProcessError, match="keeps something from round to round"):
        _ = policy.row_times


def test_a_cache_whose_gradient_is_lost_is_refused(fresh):
    kept = {}

    def change(v):  # another graph in a second call: it leads to the first call's weights, through a sum that grows
        kept["sum"] = kept.get("sum", 0) + v.mean()
        return v + kept["sum"] - kept["sum"].detach()

    policy = answered_by(fresh, change)
    with pytest.raises(PipelineError, match=r"FluxPipeline cannot be trained: its \d\. round .*gradient|second time"):
        prepare(policy, PROMPTS)


class Peeking(FluxPipeline):
    """Looks at an encoder by itself, and does without where there is none."""

    def prepare_latents(self, *args, **named):
        latents, ids = super().prepare_latents(*args, **named)
        seen = 0.1 if self.text_encoder is not None else 0.0
        return latents + seen, ids


@pytest.mark.parametrize("cls", [FluxPipeline, Peeking])
def test_an_encoder_that_is_missed_does_not_leave(fresh, cls):
    fresh.pipe.__class__ = cls
    prepare(fresh, PROMPTS, PROMPTS[:1])
    assert (fresh.pipe.text_encoder is None) == (cls is FluxPipeline)
    assert fresh.prepared.released == (("text_encoder", "text_encoder_2") if cls is FluxPipeline else ())


def test_a_bug_of_ours_is_no_property_of_a_pipeline(sd15_folder, monkeypatch):
    space = dict(vars(row_times))
    source = textwrap.dedent(inspect.getsource(RowTimes)).replace("self.repeat(", "self.repet(")
    exec(source, space)  # the same method, misspelt
    monkeypatch.setattr(RowTimes.expand, "__code__", space["RowTimes"].expand.__code__)
    policy = build(sd15_folder, CASES["sd15 guided"], ready=False)
    with pytest.raises(AttributeError, match="repet"):
        prepare(policy, PROMPTS, visits=True)


def test_getting_ready_takes_few_calls(fresh):
    with counted(fresh.denoiser) as rows:
        prepare(fresh, PROMPTS, visits=True)
    assert len(rows) <= CALLS, rows
    assert fresh.prepared.row_times


def test_steps_between_that_were_random_cannot_be_replayed_with_a_memory(fresh):
    policy = answered_by(fresh, momentum(fresh))
    prepare(policy, PROMPTS)
    _, batch = transitions(policy, plan(policy, FlowSDE(), Choice((0, 1, 2), (0, 2)), share_prefix=False))
    with pytest.raises(PipelineError, match="round 2 met another state"):
        replayed(policy, batch)


def test_other_pipelines_go_without_their_network(fresh):
    prepare(fresh, PROMPTS)
    assert fresh.stubs


def test_a_pipeline_that_never_repeats_itself_is_refused(fresh):
    generator = torch.Generator().manual_seed(0)
    policy = answered_by(fresh, lambda v: v + torch.randn(v.shape, generator=generator))
    with pytest.raises(PipelineError, match="FluxPipeline cannot be trained: FluxPipeline did not come by its"):
        prepare(policy, PROMPTS)


@pytest.mark.parametrize("error", [KeyError("height"), AttributeError("no dtype"), IndexError("out of range")])
def test_what_a_pipeline_raises_is_one_line(fresh, error):
    def call(self, prompt, height=None, width=None, num_inference_steps=1, **_):
        raise error

    fresh.pipe.__class__ = type("Odd", (FluxPipeline,), {"__call__": call})
    with pytest.raises(PipelineError, match=r"policy\.call: Odd cannot be called with these arguments: \w+Error: "):
        prepare(fresh, PROMPTS)


def test_a_decoder_that_refuses_is_named(fresh, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("decoding without tiling")

    monkeypatch.setattr(fresh.pipe.vae, "decode", refuse)
    with pytest.raises(PipelineError, match=r"policy\.call, policy\.decode: FluxPipeline .* decoding without tiling"):
        prepare(fresh, PROMPTS)


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
