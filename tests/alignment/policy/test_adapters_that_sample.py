"""An adapter that samples and is not trained against: a speed adapter under an objective that needs no ratio."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from alignment.cli import main as cli
from alignment.policy.networks.spec import FrozenAdapter, Lora
from alignment.policy.policy import Policy
from samplers import Conductor
from samplers.dynamics.flow_sde import FlowSDE
from tests.support import runs
from tests.support.adapters import save
from tests.support.policies import PROMPTS, build, perturb, plan, replayed, transitions
from tests.support.tiny import FLUX_CALL, picture, tiny_flux
from tests.support.trained import quiet

FOLDED = 1e-5
"""Folded into the weights, adapters add up in another order than beside them."""

TRAINED = {
    "merged adapters": Lora(2, merge=True),
    "whole": None,
}


@pytest.mark.parametrize("what", TRAINED)
def test_it_is_there_when_samples_are_made_and_nowhere_else(what: str, flux_folder: Path, tmp_path: Path) -> None:
    save(tiny_flux(), tmp_path, Lora(2, alpha=3, rslora=True))
    lora = TRAINED[what]
    fast = FrozenAdapter(str(tmp_path), 0.5, "sampling")
    policy = build(flux_folder, FLUX_CALL, lora=lora, adapters=(fast,))
    bare = build(flux_folder, FLUX_CALL, lora=lora)
    before = [p.detach().clone() for p in policy.denoiser.parameters()]
    seen = policy.generate(("a red circle",), torch.tensor([0]), {}).pixels[0, 0].permute(1, 2, 0)
    plain = quiet(DiffusionPipeline.from_pretrained(flux_folder))
    plain.load_lora_weights(str(tmp_path), adapter_name="fast")
    plain.set_adapters(["fast"], [0.5])
    torch.testing.assert_close(seen, picture(plain), atol=FOLDED, rtol=0)
    assert all(torch.equal(p, kept) for p, kept in zip(policy.denoiser.parameters(), before, strict=True))
    _, batch = transitions(bare, plan(bare, FlowSDE()))
    assert all(torch.equal(a, b) for a, b in zip(replayed(policy, batch), replayed(bare, batch), strict=True))
    calls = [each.call(Conductor(), PROMPTS, torch.tensor([1, 2]), pixels=True) for each in (policy, bare)]
    assert (calls[0] - calls[1]).abs().max() > 0.01


def test_chosen_weights_sample_with_it_too(flux_folder: Path, tmp_path: Path) -> None:
    save(tiny_flux(), tmp_path, Lora(2))
    policy = build(flux_folder, FLUX_CALL, adapters=(FrozenAdapter(str(tmp_path), 1.0, "sampling"),))

    def shown(policy: Policy) -> torch.Tensor:
        return policy.generate(("a red circle",), torch.tensor([0]), {}).pixels

    begin = shown(policy)
    perturb(policy)
    assert not torch.equal(shown(policy), begin)
    with policy.using("reference"):
        assert torch.equal(shown(policy), begin)


def test_a_run_samples_with_it_and_says_so(flux_folder: Path, tmp_path: Path) -> None:
    folder, fast = runs.prepared(tmp_path / "run", flux_folder), tmp_path / "fast"
    save(tiny_flux(), fast, Lora(2))
    stack = f"policy.adapters=[{{path: {fast}, when: sampling}}]"
    words = ("steps=1", "batch.updates=1", "evaluation.prompts=null", "policy.lora.rank=2")
    assert cli.run(["train", str(folder / "nft.yaml"), *words, stack]) == 0
    card = (folder / "runs/run/checkpoint-1/README.md").read_text()
    assert f"Samples in training were made with `{fast}` at weight 1.0 besides" in card
    assert not list((folder / "runs/run/checkpoint-1").glob("frozen_adapter_*"))
    adapters = load_file(folder / "runs/run/checkpoint-1/pytorch_lora_weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in adapters.values())


def test_objectives_that_need_the_sampled_steps_refuse_it(
    flux_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, fast = runs.prepared(tmp_path / "run", flux_folder), tmp_path / "fast"
    save(tiny_flux(), fast, Lora(2))
    assert runs.train(folder, "grpo", f"policy.adapters=[{{path: {fast}, when: sampling}}]") == 2
    said = capsys.readouterr().err
    assert "policy.adapters.0.when: ClippedSurrogate learns from the very steps that were sampled" in said
    assert "the first ratio would not be 1" in said
    assert not (folder / "runs").exists()
