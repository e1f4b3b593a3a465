"""LoHa and LoKr, the kinds of LyCORIS that PEFT has: what they add, what training makes of them, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.checkpoints.adapter_files import read_own, trained_adapters, write_adapter
from alignment.checkpoints.formats import Form, write_form
from alignment.errors import ConfigError
from alignment.policy.networks.adapter_kinds import Adapter
from alignment.policy.networks.adapter_places import LORA_FILE, PEFT_CONFIG, PEFT_FILE
from alignment.policy.networks.adapters import read_adapters
from alignment.policy.networks.loading import experts
from alignment.policy.networks.single_file import check_start
from alignment.policy.networks.spec import FrozenAdapter, Lora, PolicySpec
from alignment.policy.networks.tuning import fold
from samplers.dynamics.flow_sde import FlowSDE
from tests.pipelines.test_adapters import same
from tests.support.policies import build, learn, perturb, plan, replayed, transitions
from tests.support.tiny import FLUX_CALL, tiny_flux, tiny_sd15

BEGIN = "policy.lora.start"
ATTENTION = "transformer_blocks.0.attn.to_q"
FEED = "transformer_blocks.0.ff.net.0.proj"
CONV = "down_blocks.0.resnets.0.conv1"
ROUNDING = 1e-6
"""Of weights near 1: products of three numbers in another order."""

Factors = dict[str, Tensor]
Update = Callable[[Factors], Tensor]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def loha(rows: int, columns: int, rank: int = 2) -> Factors:
    return {
        "hada_w1_a": numbers(rows, rank), "hada_w1_b": numbers(rank, columns),
        "hada_w2_a": numbers(rows, rank, seed=1), "hada_w2_b": numbers(rank, columns, seed=1),
        "alpha": torch.tensor(3.0),
    }  # fmt: skip


def product(z: Factors) -> Tensor:
    rank = len(z["hada_w1_b"])
    return (z["hada_w1_a"] @ z["hada_w1_b"]) * (z["hada_w2_a"] @ z["hada_w2_b"]) * (float(z["alpha"]) / rank)


def lokr(rows: int, columns: int, rank: int = 2) -> Factors:
    """Return factors as a factor of 4 makes them, the second of low rank."""
    return {
        "lokr_w1": numbers(4, 4), "lokr_w2_a": numbers(rows // 4, rank), "lokr_w2_b": numbers(rank, columns // 4),
        "alpha": torch.tensor(3.0),
    }  # fmt: skip


def whole(rows: int, columns: int) -> Factors:
    """Return two whole matrices, whose alpha means nothing."""
    return {"lokr_w1": numbers(4, 4), "lokr_w2": numbers(rows // 4, columns // 4), "alpha": torch.tensor(1e4)}


def kronecker(z: Factors) -> Tensor:
    second = z["lokr_w2"] if "lokr_w2" in z else z["lokr_w2_a"] @ z["lokr_w2_b"]
    return torch.kron(z["lokr_w1"], second) * (1 if "lokr_w2" in z else float(z["alpha"]) / len(z["lokr_w2_b"]))


KINDS: dict[str, tuple[Callable[[int, int], Factors], Update]] = {
    "LoHa": (loha, product), "LoKr": (lokr, kronecker), "LoKr of whole matrices": (whole, kronecker)
}  # fmt: skip


def of_flux(make: Callable[[int, int], Factors]) -> dict[str, Factors]:
    return {ATTENTION: make(32, 32), FEED: make(128, 32)}


def saved(modules: dict[str, Factors], path: Path, name: Callable[[str], str] = str) -> Path:
    tensors = {f"{name(module)}.{part}": z for module, found in modules.items() for part, z in found.items()}
    save_file({key: z.clone() for key, z in tensors.items()}, path)
    return path


def flat(module: str) -> str:
    return f"lycoris_{module.replace('.', '_')}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_lycoris_adds_what_it_says(kind: str, tmp_path: Path) -> None:
    make, update = KINDS[kind]
    modules, pipe = of_flux(make), tiny_flux()
    file = saved(modules, tmp_path / "style.safetensors", flat)
    adapter = read_adapters(BEGIN, str(file), pipe, experts(pipe))["transformer"]
    assert adapter.kind == kind[:4]
    before = {name: z.clone() for name, z in pipe.transformer.state_dict().items()}
    fold(pipe.transformer, adapter, 0.5)
    for name, z in pipe.transformer.state_dict().items():
        if (module := name.removesuffix(".weight")) in modules:
            torch.testing.assert_close(z, before[name] + 0.5 * update(modules[module]), rtol=0, atol=ROUNDING)
        else:
            assert torch.equal(z, before[name])


def test_convolutions_with_a_core(tmp_path: Path) -> None:
    """LyCORIS's use_tucker, as PEFT's use_effective_conv2d."""
    pipe = tiny_sd15()
    out, inside, *kernel = pipe.unet.get_submodule(CONV).weight.shape
    half = {f"hada_t{k}": numbers(2, 2, *kernel, seed=k) for k in (1, 2)}
    sides = {f"hada_w{k}_{side}": numbers(2, n, seed=k) for k in (1, 2) for side, n in (("a", out), ("b", inside))}
    made = {**half, **sides, "alpha": torch.tensor(2.0)}
    adapter = read_adapters(BEGIN, str(saved({CONV: made}, tmp_path / "a.safetensors", flat)), pipe, experts(pipe))[
        "unet"
    ]
    before = pipe.unet.get_submodule(CONV).weight.clone()
    fold(pipe.unet, adapter, 1.0)
    first, second = (
        torch.einsum("ijkl,jr,ip->prkl", made[f"hada_t{k}"], made[f"hada_w{k}_b"], made[f"hada_w{k}_a"]) for k in (1, 2)
    )
    wanted = before + first * second
    torch.testing.assert_close(pipe.unet.get_submodule(CONV).weight, wanted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_training_goes_on_bit_by_bit_and_begins_at_its_reference(kind: str, flux_folder: Path, tmp_path: Path) -> None:
    file = saved(of_flux(KINDS[kind][0]), tmp_path / "style.safetensors", flat)
    policy = build(flux_folder, FLUX_CALL, lora=Lora(start=str(file)))
    perturb(policy)
    write_adapter(trained_adapters(policy.weights)["transformer"], tmp_path / LORA_FILE, "transformer")
    again = build(flux_folder, FLUX_CALL, lora=Lora(start=str(tmp_path / LORA_FILE)))
    again.weights.keep("reference")
    made = plan(policy, FlowSDE())
    (path, batch), (same_path, _) = transitions(policy, made), transitions(again, made)
    assert torch.equal(path.records[0].x_next, same_path.records[0].x_next)
    with again.using("reference"):
        reference = replayed(again, batch)
    for k, model_output in enumerate(replayed(again, batch)):
        assert torch.equal(model_output, batch.model_output[:, k])  # ratio 1
        assert torch.equal(model_output, reference[k])  # divergence 0
    one, other = learn(policy, batch), learn(again, batch)
    assert one.keys() == other.keys()
    assert all(bool(gradient.any()) for gradient in one.values())
    assert all(torch.equal(gradient, other[name]) for name, gradient in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_that_carries_factors_comes_back_bit_by_bit(kind: str, tmp_path: Path) -> None:
    pipe = tiny_flux()
    file = saved(of_flux(KINDS[kind][0]), tmp_path / "style.safetensors", flat)
    adapter = read_adapters(BEGIN, str(file), pipe, experts(pipe))["transformer"]
    forms: tuple[Form, ...] = ("diffusers", "peft", "comfyui")
    for form in forms:
        path = tmp_path / form / (PEFT_FILE if form == "peft" else LORA_FILE)
        path.parent.mkdir()
        named = Adapter("transformer", adapter.weights, adapter.config)
        write_form(named, path, form, "FluxTransformer2DModel", {})
        place = path.parent if form == "peft" else path
        assert same(read_adapters(BEGIN, str(place), pipe, experts(pipe))["transformer"], adapter), form
    assert same(read_own(tmp_path / "diffusers" / LORA_FILE), adapter)
    assert "transformer.transformer_blocks.0.attn.to_q.alpha" in load_file(tmp_path / "comfyui" / LORA_FILE)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_peft_and_where_it_can_diffusers_load_what_is_exported(kind: str, tmp_path: Path) -> None:
    pipe, other = tiny_flux(), tiny_flux()
    file = saved(of_flux(KINDS[kind][0]), tmp_path / "style.safetensors", flat)
    adapter = read_adapters(BEGIN, str(file), pipe, experts(pipe))["transformer"]
    write_form(adapter, tmp_path / PEFT_FILE, "peft", "FluxTransformer2DModel", {})
    loaded = PeftModel.from_pretrained(other.transformer, tmp_path).base_model.model
    fold(pipe.transformer, adapter, 1.0)
    wanted = pipe.transformer.get_submodule(ATTENTION).weight
    networks: list[Any] = [loaded]
    if kind == "LoKr":
        networks.append(tiny_flux().transformer)
        write_adapter(adapter, tmp_path / LORA_FILE, "transformer")
        networks[-1].load_lora_adapter(str(tmp_path), prefix="transformer", weight_name=LORA_FILE)
    for network in networks:
        layer = network.get_submodule(ATTENTION)
        assert torch.equal(layer.base_layer.weight + layer.get_delta_weight(layer.active_adapters[0]), wanted)


# ---- names of others -------------------------------------------------------------------------------------------------


def test_rows_of_a_matrix_that_is_several_in_diffusers(tmp_path: Path) -> None:
    pipe, made = tiny_flux(), loha(96, 32)
    file = saved({"lora_unet_double_blocks_0_img_attn_qkv": made}, tmp_path / "style.safetensors")
    adapter = read_adapters(BEGIN, str(file), pipe, experts(pipe))["transformer"]
    assert sorted(adapter.modules) == [f"transformer_blocks.0.attn.to_{part}" for part in "kqv"]
    for k, part in enumerate("qkv"):
        rows = slice(32 * k, 32 * (k + 1))
        found = adapter.parts(f"transformer_blocks.0.attn.to_{part}")
        wanted = {key: z[rows] if key.endswith("_a") else z for key, z in made.items() if key != "alpha"}
        assert found.keys() == wanted.keys()
        assert all(torch.equal(z, wanted[key]) for key, z in found.items())
    file = saved({"lora_unet_double_blocks_0_img_attn_qkv": lokr(96, 32)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ConfigError,
        match=r"other.safetensors: lora_unet_double_blocks_0_img_attn_qkv is a LoKr of a matrix that is several",
    ):
        read_adapters(BEGIN, str(file), pipe, experts(pipe))


@pytest.mark.parametrize("make", [loha, lambda *sides: lokr(*sides, rank=1)], ids=["LoHa", "LoKr"])
def test_names_of_stable_diffusion_xl_tools(make: Callable[[int, int], Factors], tmp_path: Path) -> None:
    pipe, made = tiny_sd15(), make(16, 16)
    theirs = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    adapter = read_adapters(BEGIN, str(saved({theirs: made}, tmp_path / "a.safetensors")), pipe, experts(pipe))["unet"]
    assert adapter.modules == ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",)
    found = adapter.parts(adapter.modules[0])
    assert all(torch.equal(z, made[key]) for key, z in found.items())


# ---- what is refused -------------------------------------------------------------------------------------------------

OTHERS = {
    "diff": "diff", "diff_b": "diff_b", "w_norm": "w_norm", "oft_blocks": "oft_blocks", "on_input": "on_input",
    "a1.weight": "a1.weight", "lora_mid.weight": "lora_mid.weight", "scalar": "scalar",
}  # fmt: skip


@pytest.mark.parametrize("part", OTHERS)
def test_what_peft_has_no_type_for_is_refused_by_its_name(part: str, tmp_path: Path) -> None:
    pipe, modules = tiny_flux(), {ATTENTION: {**loha(32, 32), part: torch.ones(2, 2)}}
    file = saved(modules, tmp_path / "style.safetensors", flat)
    with pytest.raises(
        ConfigError, match=rf"holds {flat(ATTENTION)}\.{part}, which is no part of a LoRA, LoHa or LoKr"
    ):
        read_adapters(BEGIN, str(file), pipe, experts(pipe))


def mixed() -> dict[str, Factors]:
    return {ATTENTION: loha(32, 32), FEED: {"lora_A.weight": numbers(2, 32), "lora_B.weight": numbers(128, 2)}}


def scaled(scale: float) -> dict[str, Factors]:
    return {ATTENTION: {**loha(32, 32), "alpha": torch.tensor(scale)}}


def other_factors() -> dict[str, Factors]:
    """Return a first factor that is larger than the second, as unbalanced_factorization makes them."""
    swapped = {"lokr_w1": numbers(8, 4), "lokr_w2_a": numbers(4, 1), "lokr_w2_b": numbers(1, 8)}
    return {ATTENTION: {**swapped, "alpha": torch.tensor(1.0)}}


def two_ranks() -> dict[str, Factors]:
    return {ATTENTION: {**loha(32, 32), "hada_w2_a": numbers(32, 3), "hada_w2_b": numbers(3, 32)}}


REFUSED: dict[str, tuple[Callable[[], dict[str, Factors]], str]] = {
    "two kinds": (mixed, r"several kinds .*: a LoHa \(transformer_blocks.0.attn.to_q.hada_w2_b\), a LoRA \(trans"),
    "magnitudes": (
        lambda: {ATTENTION: {**loha(32, 32), "dora_scale": torch.ones(32, 1)}},
        rf"holds the dora_scale of {ATTENTION}, and PEFT has no magnitudes \(DoRA\) of a LoHa",
    ),
    "scale 0": (lambda: scaled(0.0), rf"the scale \(alpha\) of {ATTENTION} is 0.0, expected more than 0"),
    "scale nan": (lambda: scaled(float("nan")), r"alpha is not finite"),
    "another width": (lambda: {ATTENTION: loha(64, 32)}, r"the hada_w1_a of \S+ has shape \[64, 2\], the layer takes"),
    "a lacking factor": (
        lambda: {ATTENTION: {key: z for key, z in lokr(32, 32).items() if key != "lokr_w1"}},
        rf"the lokr_w1 of {ATTENTION} has shape none, the layer takes \[\d, \d\]",
    ),
    "factors that PEFT cannot make": (other_factors, r"one that PEFT cannot make: the lokr_w1 of \S+ has shape \[8, 4"),
    "ranks": (two_ranks, rf"the factors of {ATTENTION} have ranks 2 and 3, where PEFT has one"),
    "a number": (
        lambda: {ATTENTION: {**loha(32, 32), "hada_w1_a": torch.tensor(1.0)}},
        r"hada_w1_a has shape \[\], expected a matrix",
    ),
    "another base": (lambda: {"down_blocks.0.attn.to_q": loha(32, 32)}, r"another base than this FluxPipeline"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_factors_that_cannot_be_trained_are_refused(name: str, tmp_path: Path) -> None:
    make, says = REFUSED[name]
    pipe, file = tiny_flux(), saved(make(), tmp_path / "style.safetensors", flat)
    with pytest.raises(ConfigError, match=says) as refused:
        read_adapters(BEGIN, str(file), pipe, experts(pipe))
    assert str(refused.value).startswith(f"{BEGIN}: {file}")
    assert "\n" not in str(refused.value)


def test_peft_settings_of_other_types_are_refused(tmp_path: Path) -> None:
    (tmp_path / PEFT_FILE).write_bytes(b"")
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({"peft_type": "OFT"}))
    pipe = tiny_flux()
    with pytest.raises(ConfigError, match=r"peft_type is OFT; LORA, LOHA and LOKR can be read"):
        read_adapters(BEGIN, str(tmp_path), pipe, experts(pipe))


def test_factors_neither_sample_alone_nor_lie_on_rounded_weights(flux_folder: Path, tmp_path: Path) -> None:
    file = saved(of_flux(loha), tmp_path / "style.safetensors", flat)
    with pytest.raises(ConfigError, match=r"is a LoHa, which is not put in and out; use always"):
        build(flux_folder, FLUX_CALL, adapters=(FrozenAdapter(str(file), when="sampling"),), ready=False)
    pipe = tiny_flux()
    start = read_adapters(BEGIN, str(file), pipe, experts(pipe))
    told = Lora(start=str(file))
    with pytest.raises(ConfigError, match=r"is a LoHa, which PEFT does not add to weights in fewer bits"):
        check_start(PolicySpec("somewhere", single_file="some.gguf", lora=told), experts(pipe), start)
    pipe.transformer.register_to_config(quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ConfigError, match=r"is a LoHa, which PEFT does not add to weights in fewer bits"):
        check_start(PolicySpec("somewhere", lora=told), experts(pipe), start)


def test_a_scale_that_other_programs_do_not_know_is_refused(tmp_path: Path) -> None:
    modules = {ATTENTION: {key: z for key, z in whole(32, 32).items() if key != "alpha"}}
    saved(modules, tmp_path / PEFT_FILE, lambda module: f"base_model.model.{module}")
    told = {"peft_type": "LOKR", "r": 8, "alpha": 4, "target_modules": ["to_q"], "decompose_factor": 4}
    (tmp_path / PEFT_CONFIG).write_text(json.dumps(told))
    pipe = tiny_flux()
    adapter = read_adapters(BEGIN, str(tmp_path), pipe, experts(pipe))["transformer"]
    before = pipe.transformer.get_submodule(ATTENTION).weight.clone()
    fold(pipe.transformer, adapter, 1.0)
    wanted = before + 0.5 * kronecker(modules[ATTENTION])
    torch.testing.assert_close(pipe.transformer.get_submodule(ATTENTION).weight, wanted, rtol=0, atol=ROUNDING)
    with pytest.raises(ConfigError, match=r"is of two whole matrices at scale 0.5, .* use --as peft"):
        write_form(adapter, tmp_path / "a.safetensors", "comfyui", "FluxTransformer2DModel", {})


def test_what_a_format_has_not_is_sent_to_one_that_takes_it(tmp_path: Path) -> None:
    """Diffusers loads no LoHa, so that it is no way out for one."""
    saved({ATTENTION: loha(32, 32)}, tmp_path / "some.safetensors", flat)
    pipe = tiny_flux()
    adapter = read_adapters(BEGIN, str(tmp_path), pipe, experts(pipe))["transformer"]
    with pytest.raises(ConfigError, match=r"of which \S+ alone is adapted; use --as peft, or --as merged"):
        write_form(adapter, tmp_path / "a.safetensors", "kohya", "FluxTransformer2DModel", {})
