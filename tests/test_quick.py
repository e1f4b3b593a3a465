"""What is answered for diffusers in a fraction of the time is what it answers itself."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionPipeline
from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from tests.support import quick


class Counting(ModelHook):
    """A hook with a state, which counts how often it is reset."""

    _is_stateful = True
    resets = 0

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.resets += 1
        return module


def networks(pipe: DiffusionPipeline) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def test_modules_come_in_their_order_and_once(flux: FluxPipeline) -> None:
    shared = nn.Linear(2, 2)
    for network in (*networks(flux), nn.Sequential(nn.Sequential(shared), shared, nn.Sequential(nn.ReLU(), shared))):
        assert [*quick.modules(network)] == [*network.modules()]


@pytest.mark.parametrize("offloaded", [False, True])
def test_hooks_of_offloading_are_those_that_diffusers_finds(flux: FluxPipeline, offloaded: bool) -> None:
    theirs = quick.THEIRS["_get_top_level_group_offload_hook"]
    if offloaded:
        cpu = torch.device("cpu")
        flux.transformer.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    found = [(theirs(network), quick.top_level_hook(network)) for network in networks(flux)]
    assert all(one is other for one, other in found)
    assert any(hook is not None for hook, _ in found) == offloaded


@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_every_hook_with_a_state_is_reset_once(flux: FluxPipeline, whose: str) -> None:
    hooks, reset = [], quick.reset if whose == "ours" else quick.THEIRS["reset_stateful_hooks"]
    for module in (flux.transformer, flux.transformer.transformer_blocks[0].attn):
        hooks.append(Counting())
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hooks[-1], "counting")
    reset(HookRegistry.check_if_exists_or_initialize(flux.transformer))
    assert [hook.resets for hook in hooks] == [1, 1]


@pytest.mark.parametrize("kind", [FluxPipeline, StableDiffusionPipeline])
def test_components_have_the_same_names(kind: type[DiffusionPipeline], flux: FluxPipeline) -> None:
    theirs = quick.THEIRS["_get_signature_keys"].__func__
    assert quick.keys(kind, kind) == theirs(kind, kind)
    assert quick.keys(FluxPipeline, flux) == theirs(FluxPipeline, flux)
