"""Feature caches: in one rollout and gone, refused where they cannot be or must not be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignment.config.refusals import rollouts
from alignment.errors import ConfigError
from alignment.objectives.direct_gradient.draft import DRaFT
from alignment.objectives.forward_process.kto import KTO
from alignment.objectives.forward_process.nft import NFT
from alignment.objectives.policy_gradient.clipped_surrogate import ClippedSurrogate
from alignment.policy.caching.check import check_caches
from alignment.policy.networks.caches.base import FeatureCache
from alignment.policy.networks.caches.faster import Faster
from alignment.policy.networks.caches.first_block import FirstBlock
from alignment.policy.networks.caches.mag import Mag
from alignment.policy.networks.caches.pyramid_attention import PyramidAttention
from alignment.policy.networks.caches.taylor_seer import TaylorSeer
from alignment.policy.networks.spec import PolicySpec
from alignment.policy.policy import Policy
from alignment.sources.base import Source
from alignment.sources.offline import Offline
from alignment.sources.on_policy import OnPolicy
from alignment.sources.on_policy_steps import OnPolicySteps
from alignment.sources.prompts_only import PromptsOnly
from alignment.sources.scouting.scout import Cheaply, Scout
from reward_models.measures.colour import Colour
from samplers import Conductor
from samplers.dynamics.flow_sde import FlowSDE
from samplers.windows.random import Random
from tests.support.policies import ALL, PROMPTS, build, counted, plan, replayed, transitions
from tests.support.tiny import FLUX_CALL, SD15_CALL
from tests.support.toy import REWARD, saved, toy_run, trainer_of

SEEDS = torch.tensor([3, 4])
ROUNDS = 8
CALL = {**FLUX_CALL, "num_inference_steps": ROUNDS}
ALWAYS = FirstBlock(threshold=1e9)
"""Runs all blocks in the first round, and in no other."""
LEAVE_OUT = {
    "first block": ALWAYS,
    "mag": Mag(ratios=(1.0,) * ROUNDS, threshold=1.0, warmup=0.0),
    "taylor": TaylorSeer(interval=3, warmup=2),
    "pyramid": PyramidAttention(between=(0, 1000)),
}


@pytest.fixture
def policy(flux_folder: Path) -> Policy:
    return build(flux_folder, CALL)


def sampled(policy: Policy, cache: FeatureCache | None) -> Tensor:
    with policy.caching(cache):
        pixels = policy.call(Conductor(), PROMPTS, SEEDS, pixels=True)
    assert pixels is not None
    return pixels


def last_block(policy: Policy) -> nn.Module:
    return policy.denoiser.single_transformer_blocks[-1].attn


@pytest.mark.parametrize("cache", LEAVE_OUT.values(), ids=LEAVE_OUT)
def test_a_cache_leaves_layers_out_of_one_call_and_nothing_of_it_stays(policy: Policy, cache: FeatureCache) -> None:
    before = sampled(policy, None)
    with counted(policy.denoiser.x_embedder) as rounds, counted(last_block(policy).to_q) as layers:
        first, second = sampled(policy, cache), sampled(policy, cache)
    assert len(rounds) == 2 * ROUNDS
    assert 0 < len(layers) < len(rounds)
    assert not torch.equal(first, before)  # it answers otherwise ...
    assert torch.equal(first, second)  # ... and begins each call anew
    assert torch.equal(sampled(policy, None), before)
    with counted(last_block(policy).to_q) as layers:
        _, batch = transitions(policy, plan(policy, FlowSDE(), ALL, rounds=ROUNDS))
        assert all(torch.equal(v, batch.model_output[:, k]) for k, v in enumerate(replayed(policy, batch)))
    assert len(layers) >= ROUNDS + len(ALL.trained)


def test_a_cache_that_leaves_nothing_out_changes_nothing(policy: Policy) -> None:
    assert torch.equal(sampled(policy, FirstBlock(threshold=0.0)), sampled(policy, None))


def test_evaluation_never_uses_one(flux_folder: Path) -> None:
    made = [build(flux_folder, CALL, cache=cache).generate(PROMPTS, SEEDS, {}).pixels for cache in (None, ALWAYS)]
    assert torch.equal(*made)


def test_a_network_that_lacks_it_is_refused(policy: Policy, sd15_folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"policy.cache: the unet .* of StableDiffusionPipeline has no feature caches"
    ):
        check_caches(build(sd15_folder, SD15_CALL), {"policy.cache": ALWAYS}, PROMPTS[0])
    policy.denoiser.single_transformer_blocks = nn.ModuleList()  # diffusers wants a first block and another
    with pytest.raises(
        ConfigError, match=r"source.scout.how.cache: the transformer .* does not take this cache: Index"
    ):
        check_caches(policy, {"policy.cache": None, "source.scout.how.cache": ALWAYS}, PROMPTS[0])


def test_a_network_of_ones_own_has_none(tmp_path: Path) -> None:
    folder = saved(tmp_path, updates=1)
    run = toy_run(folder, OnPolicy(2, REWARD), NFT(), 1, policy=PolicySpec(str(folder), cache=ALWAYS))
    with pytest.raises(ConfigError, match=r"policy.cache: the transformer \(ToyNetwork\) .* has no feature caches"):
        trainer_of(run)


POLICY = PolicySpec("nowhere", cache=ALWAYS)
SCOUTED = OnPolicySteps(
    2, REWARD, FlowSDE(), Random(), group_size=2, shared_noise=False, scout=Scout(6, Cheaply(cache=ALWAYS))
)


@pytest.mark.parametrize(
    ("source", "objective", "policy", "says"),
    [
        (OnPolicySteps(2, REWARD, FlowSDE(), Random()), ClippedSurrogate(), POLICY, "needs the density of each"),
        (PromptsOnly(2, Colour()), DRaFT(), POLICY, "samples with gradient"),
        (Offline(4), KTO(), POLICY, "Offline samples nothing"),
        (OnPolicy(2, REWARD), NFT(), PolicySpec("nowhere", cache=ALWAYS, compile=True), "compiled anew"),
        (OnPolicy(2, REWARD), NFT(), POLICY, None),
        (SCOUTED, ClippedSurrogate(), PolicySpec("nowhere"), None),
    ],
)
def test_what_it_does_not_go_with_is_refused_before_anything_is_loaded(
    tmp_path: Path, source: Source, objective: object, policy: PolicySpec, says: str | None
) -> None:
    found = list(rollouts.problems(toy_run(tmp_path, source, objective, 1, policy=policy)))
    assert [key for key, _ in found] == ([] if says is None else ["policy.cache"])
    assert says is None or says in found[0][1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FirstBlock(-1.0),
        lambda: TaylorSeer(interval=1),
        lambda: Mag(ratios=()),
        lambda: PyramidAttention(every=0),
        lambda: Faster(unconditioned=0),
    ],
)
def test_numbers_that_cannot_be_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=r"expected|needs"):
        make()
