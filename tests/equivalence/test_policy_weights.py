"""Which weights answer: live, merged, reference, copies; and what a pipeline is left with."""

from dataclasses import replace

import pytest
import torch

from alignment.policy.call_forms import Form
from alignment.policy.networks.spec import Lora
from alignment.policy.prepare import probe
from samplers import Conductor
from samplers.dynamics.flow_sde import FlowSDE
from tests.support.policies import (
    CASES,
    DYNAMICS,
    PROMPTS,
    ROWS,
    Failing,
    learn,
    perturb,
    plain,
    plan,
    replayed,
    transitions,
)


@pytest.mark.parametrize("case", ["flux", "sd15 guided"])
def test_the_reference_is_the_adapter_switched_off(case, policy_of, folder_of):
    policy = policy_of(case)
    _, batch = transitions(policy, plan(policy, DYNAMICS[case.split()[0]][0]))
    perturb(policy)
    live = replayed(policy, batch)
    with policy.using("reference"):
        reference = replayed(policy, batch)
    again = replayed(policy, batch)
    for k in range(3):
        torch.testing.assert_close(reference[k], batch.model_output[:, k], atol=ROWS, rtol=ROWS)
        assert (live[k] - reference[k]).abs().max() > 1e-3
        assert torch.equal(live[k], again[k])


@pytest.mark.parametrize("case", ["flux", "sd15 guided"])
def test_merged_adapters_sample_alike_and_leave_no_trace(case, policy_of, folder_of):
    policy = policy_of(case, lora=Lora(2, merge=True))
    perturb(policy)
    before = {name: p.detach().clone() for name, p in policy.denoiser.named_parameters()}
    merged = policy.call(Conductor(), PROMPTS, torch.tensor([1, 2]), pixels=True)
    policy.spec = replace(policy.spec, lora=Lora(2))
    apart = policy.call(Conductor(), PROMPTS, torch.tensor([1, 2]), pixels=True)
    torch.testing.assert_close(merged, apart, atol=1e-4, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in policy.denoiser.named_parameters())


def test_a_merged_policy_still_samples_its_reference(policy_of, folder_of):
    policy = policy_of("flux", lora=Lora(2, merge=True))
    perturb(policy)
    with policy.using("reference"):
        media = policy.generate(PROMPTS[:1], torch.tensor([5]), {})
        again = policy.generate(PROMPTS[:1], torch.tensor([5]), {})
    assert torch.equal(media.pixels[:, 0], plain(folder_of["flux"], PROMPTS[:1], [5], CASES["flux"]))
    assert torch.equal(media.pixels, again.pixels)
    assert not torch.equal(policy.generate(PROMPTS[:1], torch.tensor([5]), {}).pixels, media.pixels)


def test_weights_come_back_when_a_merged_call_fails(policy_of):
    policy = policy_of("flux", lora=Lora(2, merge=True))
    perturb(policy)
    before = {name: p.detach().clone() for name, p in policy.denoiser.named_parameters()}
    with pytest.raises(RuntimeError, match="on purpose"), Failing(policy):
        policy.call(Conductor(), PROMPTS, torch.tensor([1, 2]), pixels=True)
    assert all(torch.equal(p, before[name]) for name, p in policy.denoiser.named_parameters())


def test_whole_denoisers_train_with_a_frozen_copy_as_reference(policy_of):
    policy = policy_of("flux", lora=None, trainable=("attn",))
    assert policy.trainable
    assert all("attn" in name for name in policy.trainable)
    policy.weights.keep("reference")
    _, batch = transitions(policy, plan(policy, FlowSDE()))
    perturb(policy, 0.05)
    before = {name: p.detach().clone() for name, p in policy.trainable.items()}
    with policy.using("reference"):
        reference = replayed(policy, batch)
    torch.testing.assert_close(reference[1], batch.model_output[:, 1], atol=ROWS, rtol=ROWS)
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable.items())


def test_a_copy_follows_the_live_weights(policy_of):
    policy = policy_of("flux")
    policy.weights.keep("ema")
    start = {name: p.detach().clone() for name, p in policy.trainable.items()}
    perturb(policy)
    policy.weights.refresh("ema", 0.75)
    for name, p in policy.trainable.items():
        torch.testing.assert_close(policy.snapshots["ema"][name], 0.75 * start[name] + 0.25 * p.detach())
    policy.weights.keep("ema")
    assert not torch.equal(next(iter(policy.snapshots["ema"].values())), next(iter(start.values())))
    with policy.using("live"):
        assert not policy.denoiser.training


def test_what_is_saved_is_the_pipeline_as_it_was(policy_of, folder_of, tmp_path):
    policy = policy_of("flux", ready=False)
    config = dict(policy.pipe.config)
    probe(policy, PROMPTS[0])
    policy.form = Form.ROWS
    _, batch = transitions(policy, plan(policy, FlowSDE()))
    learn(policy, batch)
    assert dict(policy.pipe.config) == config
    policy.pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    saved, original = (
        (folder / "scheduler" / "scheduler_config.json").read_text() for folder in (tmp_path, folder_of["flux"])
    )
    assert saved == original
