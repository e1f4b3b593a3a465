"""PEFT's settings of an adapter, beside its file or in its header: what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.errors import ConfigError
from alignment.policy.networks.adapter_kinds import Adapter, alpha_of, scale_of
from alignment.policy.networks.adapter_places import LORA_FILE, PEFT_CONFIG, PEFT_FILE
from alignment.policy.networks.adapters import SETTINGS, read_adapters
from alignment.policy.networks.loading import experts
from alignment.policy.networks.tuning import fold
from tests.support.tiny import tiny_flux

BEGIN = "policy.lora.start"
MODULE = "transformer_blocks.0.attn.to_q"
OTHER = "transformer_blocks.0.attn.to_k"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_flux()


def matrices() -> dict[str, Tensor]:
    return {
        f"{module}.lora_{side}.weight": torch.ones(*shape)
        for module in (MODULE, OTHER)
        for side, shape in (("A", (4, 32)), ("B", (32, 4)))
    }


def factors() -> dict[str, Tensor]:
    return {f"{MODULE}.hada_w{k}_{s}": torch.ones(*n) for k in (1, 2) for s, n in (("a", (32, 4)), ("b", (4, 32)))}


def beside(folder: Path, told: str, tensors: dict[str, Tensor]) -> Path:
    save_file({f"base_model.model.{name}": z for name, z in tensors.items()}, folder / PEFT_FILE)
    (folder / PEFT_CONFIG).write_text(told)
    return folder


def in_header(folder: Path, told: dict[str, object]) -> Path:
    header = {SETTINGS: json.dumps({f"transformer.{key}": value for key, value in told.items()})}
    save_file({f"transformer.{name}": z for name, z in matrices().items()}, folder / LORA_FILE, header)
    return folder / LORA_FILE


def read(pipe: Any, place: Path) -> Adapter:
    return read_adapters(BEGIN, str(place), pipe, experts(pipe))["transformer"]


LORA: dict[str, object] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
LOHA: dict[str, object] = {"peft_type": "LOHA", "r": 4, "alpha": 8}

REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "alpha as text": ({"lora_alpha": "8"}, r'lora_alpha is "8", expected a number'),
    "alpha as truth": ({"lora_alpha": True}, "lora_alpha is true, expected a number"),
    "alpha of 400 digits": ({"lora_alpha": 10**400}, r"lora_alpha is 1000*\.\.\., expected a finite number"),
    "alpha nan": ({"lora_alpha": float("nan")}, "lora_alpha is NaN, expected a finite number"),
    "alpha below 0": ({"lora_alpha": -8}, r"the scale \(alpha\) of \S+ is -8.0, expected more than 0"),
    "another rank": ({"r": 8}, r"r is 8, expected 4, the rank of the matrices of transformer_blocks.0.attn"),
    "rank as text": ({"r": "4"}, r'r is "4", expected a number'),
    "a pattern of no module": ({"alpha_pattern": {"qkv": 40}}, r"alpha_pattern.qkv is 40, expected the name of one"),
    "ranks of no module": ({"rank_pattern": {"qkv": 40}}, r"rank_pattern.qkv is 40, expected the name of one of its"),
    "half a rank": ({"r": 4.5}, r"r is 4.5, expected a whole number of at least 1"),
    "rslora as text": ({"use_rslora": "false"}, r'use_rslora is "false", expected true or false'),
    "dora without magnitudes": ({"use_dora": True}, r"use_dora is true, expected false, or magnitudes"),
    "qalora": ({"use_qalora": True}, "use_qalora is true, expected none"),
    "a list of alphas": ({"alpha_pattern": ["to_q"]}, r'alpha_pattern is \["to_q"\], expected an object of numbers'),
    "a pattern's text": ({"alpha_pattern": {"to_q": "x"}}, r'alpha_pattern.to_q is "x", expected a number'),
    "a pattern's null": ({"alpha_pattern": {"to_q": None}}, r"alpha_pattern.to_q is null, expected a number"),
    "no regular expression": ({"alpha_pattern": {"(": 3}}, r"alpha_pattern.\( is not a regular expression: "),
    "the rank of a pattern": ({"rank_pattern": {"to_q": 2}}, r"r is 2, expected 4"),
    "of factors": ({"peft_type": "LOHA"}, r'peft_type is "LOHA", expected "LORA", for the tensors are those of a LoRA'),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, r'init_lora_weights is "pissa_niter_4", .*path_initial_model'),
    "olora": ({"init_lora_weights": "olora"}, r'init_lora_weights is "olora", expected one that leaves'),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_be_meant_are_refused(name: str, pipe: Any, tmp_path: Path) -> None:
    change, says = REFUSED[name]
    told = {**LORA, **change}
    for place in (beside(tmp_path, json.dumps(told), matrices()), in_header(tmp_path, told)):
        with pytest.raises(ConfigError, match=says) as refused:
            read(pipe, place)
        assert str(refused.value).startswith(f"{BEGIN}: {tmp_path}")
        assert "\n" not in str(refused.value)


OF_FACTORS: dict[str, tuple[dict[str, object], str]] = {
    "rank 0": ({"r": 0}, "r is 0, expected a whole number of at least 1"),
    "rank inf": ({"r": float("inf")}, "r is Infinity, expected a finite number"),
    "a pattern's text": ({"rank_pattern": {"to_q": "a"}}, r'rank_pattern.to_q is "a", expected a number'),
    "another kind": ({"peft_type": "LORA"}, r'peft_type is "LORA", expected "LOHA", for the tensors are those of a Lo'),
}


@pytest.mark.parametrize("name", OF_FACTORS)
def test_settings_of_factors_that_cannot_be_meant_are_refused(name: str, pipe: Any, tmp_path: Path) -> None:
    change, says = OF_FACTORS[name]
    with pytest.raises(ConfigError, match=says):
        read(pipe, beside(tmp_path, json.dumps({**LOHA, **change}), factors()))


def test_alpha_is_that_of_peft_where_its_settings_do_not_say_it(pipe: Any, tmp_path: Path) -> None:
    usual = LoraConfig().lora_alpha
    assert read(pipe, beside(tmp_path, "{}", matrices())).config == read(pipe, in_header(tmp_path, {"r": 4})).config
    assert alpha_of(read(pipe, beside(tmp_path, "{}", matrices())), MODULE) == usual
    assert alpha_of(read(pipe, beside(tmp_path, "{}", factors())), MODULE) == usual
    save_file(matrices(), tmp_path / LORA_FILE)  # without settings, diffusers takes the rank
    assert alpha_of(read(pipe, tmp_path / LORA_FILE), MODULE) == 4


def test_a_pissa_of_peft_is_read_as_what_it_was_converted_to(tmp_path: Path) -> None:
    """As PEFT saves it, it is of other weights; converted by its own means, it adds what was trained."""
    torch.manual_seed(0)
    pipe, own = tiny_flux(), tiny_flux()
    before = {name: z.clone() for name, z in pipe.transformer.state_dict().items()}
    model = get_peft_model(own.transformer, LoraConfig(r=4, target_modules=["to_q"], init_lora_weights="pissa"))
    model.save_pretrained(tmp_path / "began")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    model.save_pretrained(tmp_path / "as it is")
    with pytest.raises(ConfigError, match=r'init_lora_weights is "pissa", expected one that leaves'):
        read(pipe, tmp_path / "as it is")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "began"))
    fold(pipe.transformer, read(pipe, tmp_path / "converted"), 1.0)
    wanted = model.merge_and_unload().state_dict()
    assert wanted.keys() == before.keys()
    for name, z in pipe.transformer.state_dict().items():
        torch.testing.assert_close(z, wanted[name], atol=1e-5, rtol=0)  # singular values added and taken out again


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_eight_bits_are_read_as_they_are(dtype: torch.dtype, pipe: Any, tmp_path: Path) -> None:
    stored = {name: (z * 0.3).to(dtype) for name, z in matrices().items()}
    save_file(stored, tmp_path / LORA_FILE)
    assert load_file(tmp_path / LORA_FILE)[f"{MODULE}.lora_A.weight"].dtype == dtype
    found = read(pipe, tmp_path / LORA_FILE)
    assert all(torch.equal(z, stored[name].float()) for name, z in found.weights.items())


def test_the_scale_of_settings_is_that_of_the_whole_rank_where_a_matrix_is_taken_apart(
    pipe: Any, tmp_path: Path
) -> None:
    """Query, key and value have two of six columns each, and alpha stands in the settings alone."""
    a, b = torch.randn(6, 32), torch.block_diag(*torch.randn(3, 32, 2))
    tensors = {"double_blocks.0.img_attn.qkv.lora_A.weight": a, "double_blocks.0.img_attn.qkv.lora_B.weight": b}
    for told in ({"r": 6}, {}):
        found = read(pipe, beside(tmp_path, json.dumps({**told, "peft_type": "LORA", "lora_alpha": 12}), tensors))
        assert len(found.modules) == 3
        for name, rows in zip("qkv", b.split(32), strict=True):
            module = f"transformer_blocks.0.attn.to_{name}"
            update = found.weights[f"{module}.lora_B.weight"] @ found.weights[f"{module}.lora_A.weight"]
            torch.testing.assert_close(scale_of(found, module) * update, 2.0 * rows @ a)


def test_settings_of_other_networks_say_nothing_of_this_one(pipe: Any, tmp_path: Path) -> None:
    header = {SETTINGS: json.dumps({"text_encoder.lora_alpha": 4})}
    save_file({f"transformer.{name}": z for name, z in matrices().items()}, tmp_path / LORA_FILE, header)
    found = read(pipe, tmp_path / LORA_FILE)
    assert [scale_of(found, module) for module in found.modules] == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["LoRA", "LoHa"])
def test_an_alpha_beside_the_matrices_is_that_of_the_settings(kind: str, pipe: Any, tmp_path: Path) -> None:
    """Files of programs that write both are read where the two are one."""
    told, tensors = (LORA, matrices()) if kind == "LoRA" else (LOHA, factors())
    modules = {name.rpartition(".lora_")[0] or MODULE for name in tensors}
    for alpha in (8.0, 4.0):
        both = {**tensors, **{f"{module}.alpha": torch.tensor(alpha) for module in modules}}
        place = beside(tmp_path, json.dumps(told), both)
        if alpha == told.get("lora_alpha", told.get("alpha")):
            assert alpha_of(read(pipe, place), MODULE) == alpha
            continue
        with pytest.raises(
            ConfigError, match=r"alpha is 8, expected 4, as \S+to_[qk].alpha in the file says; leave one"
        ):
            read(pipe, place)


def test_magnitudes_that_settings_deny_are_refused(pipe: Any, tmp_path: Path) -> None:
    """PEFT reads past them."""
    scaled = {f"{module}.lora_magnitude_vector": torch.ones(32) for module in (MODULE, OTHER)}
    place = beside(tmp_path, json.dumps({**LORA, "use_dora": False}), {**matrices(), **scaled})
    with pytest.raises(ConfigError, match=r"use_dora is false, expected true: the file has magnitudes"):
        read(pipe, place)


def test_alphas_beside_a_rank_stabilised_scale_are_refused(pipe: Any, tmp_path: Path) -> None:
    told = {**LORA, "use_rslora": True}
    place = beside(tmp_path, json.dumps(told), {**matrices(), f"{MODULE}.alpha": torch.tensor(8.0)})
    with pytest.raises(ConfigError, match=rf"use_rslora is true, expected false where the file has alphas \({MODULE}"):
        read(pipe, place)
