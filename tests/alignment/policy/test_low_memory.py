"""What makes a pipeline fit changes where things are and how many bits they have, and not what is learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from alignment.errors import ConfigError, EnvironmentProblem
from alignment.policy.networks.float8 import store_as_float8
from alignment.policy.networks.low_memory import decode_in_parts, quantization
from alignment.policy.networks.spec import Lora, PolicySpec
from samplers.dynamics.flow_sde import FlowSDE
from samplers.rollout import sample
from tests.support.policies import CPU, build, learn, log_ratio, perturb, plan, replayed, transitions
from tests.support.tiny import FLUX_CALL, tiny_flux

EIGHT_BITS = 0.05
"""Of pixels in [0, 1]: weights rounded to one of 255 values a channel."""

RATIO = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flux")
    tiny_flux().save_pretrained(path)
    return path


def test_eight_bits_train_adapters(folder: Path) -> None:
    policy, whole = build(folder, FLUX_CALL, quantize="8bit"), build(folder, FLUX_CALL)
    kinds = {type(module.weight).__name__ for module in policy.denoiser.modules() if hasattr(module, "base_layer")}
    assert kinds == {"Int8Tensor"}
    made, wanted = (sample(p.call, plan(p, FlowSDE())).pixels for p in (policy, whole))
    assert 0 < (made - wanted).abs().max() < EIGHT_BITS
    perturb(policy)
    _, batch = transitions(policy, plan(policy, FlowSDE()))
    gradients = learn(policy, batch)
    assert set(gradients) == set(policy.trainable)
    assert all(bool(gradient.any()) for gradient in gradients.values())


def test_float8_is_the_network_with_rounded_weights(folder: Path) -> None:
    policy, whole = build(folder, FLUX_CALL, quantize="float8"), build(folder, FLUX_CALL)
    here, rounded = dict(policy.denoiser.named_parameters()), []
    with torch.no_grad():
        for name, weight in whole.denoiser.named_parameters():
            if here[name].dtype == torch.float8_e4m3fn:
                rounded.append(name)
                weight.copy_(here[name].float())
            else:
                assert torch.equal(here[name], weight), name
    assert sum(here[name].numel() for name in rounded) > sum(p.numel() for p in here.values()) / 2
    made, wanted = (transitions(p, plan(p, FlowSDE()))[1] for p in (policy, whole))
    assert torch.equal(made.model_output, wanted.model_output)
    ratios = [(log_ratio(made, k, v).exp() - 1).abs().max() for k, v in enumerate(replayed(policy, made))]
    assert max(ratios) <= RATIO
    for one in (policy, whole):
        perturb(one)
    gradients, others = learn(policy, made), learn(whole, wanted)
    assert set(gradients) == set(policy.trainable)
    for name, gradient in others.items():
        assert torch.equal(gradients[name], gradient), name


def test_what_float8_cannot_hold_is_named(folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.transformer.requires_grad_(False)
    pipe.transformer.transformer_blocks[0].attn.to_q.weight[0, 0] = 1000.0
    says = "float8 holds numbers up to 448, and transformer_blocks.0.attn.to_q has 1000; use 8bit"
    with pytest.raises(ConfigError, match=says):
        store_as_float8(pipe.transformer, torch.float32)


def test_float8_goes_without_dora() -> None:
    with pytest.raises(ConfigError, match=r"float8 keeps .* DoRA measures them at every call"):
        PolicySpec("x", lora=Lora(2, dora=True), quantize="float8")


def test_four_bits_need_cuda() -> None:
    spec = PolicySpec("x", lora=Lora(2), quantize="4bit")
    with pytest.raises(EnvironmentProblem, match="4bit runs on CUDA only, and this run is on cpu; use 8bit"):
        quantization(spec, ("transformer",), CPU)


def test_a_backend_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="run `pip install torchao`"):
        quantization(PolicySpec("x", lora=Lora(2), quantize="8bit"), ("transformer",), CPU)


@pytest.mark.parametrize("lora", [None, Lora(2, merge=True)])
def test_rounded_weights_are_neither_trained_nor_folded(lora: Lora | None) -> None:
    with pytest.raises(ConfigError, match=r"policy\.quantize: 8bit keeps the denoiser's weights rounded"):
        PolicySpec("x", lora=lora, quantize="8bit")


@pytest.mark.parametrize("change", [{"offload": True}, {"decode": "sliced"}, {"trajectories": "cpu"}], ids=str)
def test_where_things_are_changes_nothing(folder: Path, change: dict[str, object]) -> None:
    policies = build(folder, FLUX_CALL, **change), build(folder, FLUX_CALL)
    (path, batch), (wanted, other) = (transitions(policy, plan(policy, FlowSDE())) for policy in policies)
    torch.testing.assert_close(path.pixels, wanted.pixels)
    torch.testing.assert_close(batch.model_output, other.model_output)


def test_encoders_and_decoder_are_offloaded_and_the_denoiser_is_not(folder: Path) -> None:
    policy = build(folder, FLUX_CALL, ready=False, offload=True)
    hooked = {name for name, part in policy.pipe.components.items() if hooks(part)}
    assert hooked == {"vae", "text_encoder", "text_encoder_2"}


def hooks(part: object) -> bool:
    from diffusers.hooks.group_offloading import _is_group_offload_enabled

    return isinstance(part, torch.nn.Module) and _is_group_offload_enabled(part)


def test_tiles_cover_the_picture(folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.vae.register_to_config(sample_size=8)
    decode_in_parts(pipe, "tiled")
    assert pipe.vae.use_tiling
    assert pipe.vae.use_slicing


def test_decoders_that_cannot_are_named(folder: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.register_modules(vae=None)
    with pytest.raises(ConfigError, match=r"policy\.decode: .* cannot decode in parts"):
        decode_in_parts(pipe, "tiled")


def test_defaults_leave_a_spec_as_it_was() -> None:
    assert replace(PolicySpec("x"), offload=False) == PolicySpec("x")
