"""Adapters whose tensors do not fit, or could be meant in two ways: each is refused, by its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment.errors import ConfigError
from alignment.policy.networks.adapter_places import LORA_FILE
from alignment.policy.networks.adapters import read_adapters
from alignment.policy.networks.loading import experts
from alignment.policy.networks.spec import Lora
from tests.support.adapters import save
from tests.support.tiny import tiny_flux

BEGIN = "policy.lora.start"


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Return a tiny FLUX adapter in diffusers' layout."""
    folder = tmp_path_factory.mktemp("adapter")
    save(tiny_flux(), folder, Lora(2))
    return load_file(folder / LORA_FILE)


def nan_scale(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(iter(tensors)).rpartition(".lora_")[0]
    return {**tensors, f"{name}.alpha": torch.tensor(float("nan"))}


def no_scale(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(iter(tensors)).rpartition(".lora_")[0]
    return {**tensors, f"{name}.alpha": torch.tensor(0.0)}


def half_unknown(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("to_q", "to_z").replace("to_k", "to_y"): z for name, z in tensors.items()}


def lacking(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: z for name, z in tensors.items() if not name.endswith("attn.to_q.lora_B.weight")}


def wider(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([z, z], 1) if "lora_A" in name else torch.cat([z, z]) for name, z in tensors.items()}


def of_lycoris(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"lycoris_single_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(2, 2), **tensors}


def several_scales(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(iter(tensors)).rpartition(".lora_")[0]
    return {**tensors, f"{name}.alpha": torch.ones(3)}


def of_no_rank(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: z[:0] if "lora_A" in name else z[:, :0] for name, z in tensors.items()}


def with_text(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "text_encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}


def first_of(tensors: dict[str, Tensor]) -> str:
    """Return the first module, whose layer has as many rows as columns."""
    return next(iter(tensors)).rpartition(".lora_")[0]


def in_two_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, **{name.replace("transformer.", "base_model.model.", 1): z + 1 for name, z in tensors.items()}}


def of_two_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace(".weight", f".{k}.weight"): z + k for name, z in tensors.items() for k in (0, 1)}


def down_and_a(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, f"{first_of(tensors)}.lora_down.weight": torch.ones(3, 32)}


def kohya_beside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = f"lora_unet_{first_of(tensors).removeprefix('transformer.').replace('.', '_')}"
    return {**tensors, f"{name}.lora_down.weight": torch.ones(3, 32), f"{name}.lora_up.weight": torch.ones(32, 3)}


def fused_and_split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    return {**tensors, f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(96, 2)}


def unknown_twice(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return two of a module that only diffusers might know."""
    return {**tensors, **{f"{prefix}some.block.lora_A.weight": torch.ones(2, 2) for prefix in ("unet.", "")}}


def magnitudes(tensors: dict[str, Tensor], *shape: int, part: str = "dora_scale") -> dict[str, Tensor]:
    modules = {name.rpartition(".lora_")[0]: z for name, z in tensors.items() if "lora_B" in name}
    return {**tensors, **{f"{name}.{part}": torch.ones(len(z), *shape) for name, z in modules.items()}}


def of_columns(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**magnitudes(tensors), f"{first_of(tensors)}.dora_scale": torch.ones(1, 32)}


def one_magnitude_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**magnitudes(tensors), f"{first_of(tensors)}.dora_scale": torch.ones(33)}


def a_magnitude_alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        **magnitudes(tensors, part="lora_magnitude_vector"),
        f"{first_of(tensors)}.lora_magnitude_vector": torch.ones(()),
    }


def magnitudes_of_some(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, f"{first_of(tensors)}.dora_scale": torch.ones(32, 1)}


def of_a_kernel(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, f"{first_of(tensors)}.lora_B.weight": torch.ones(32, 2, 2)}


def of_no_shape(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, f"{first_of(tensors)}.lora_B.weight": torch.ones(())}


def huge_scale(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, f"{first_of(tensors)}.alpha": torch.tensor(1e38)}


def whole_numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: z.to(torch.int8) for name, z in tensors.items()}


def truths(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: z > 0 for name, z in tensors.items()}


def complex_numbers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: z.to(torch.complex64) for name, z in tensors.items()}


def sides_of_two_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"lora_A.weight": "lora_A.one.weight", "lora_B.weight": "lora_B.two.weight"}
    return {re.sub(r"lora_[AB]\.weight", lambda found: names[found[0]], name): z for name, z in tensors.items()}


def of_two_lines(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("lora_A", "lora\n_A"): z for name, z in tensors.items()}


def scale_alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "lora_unet_some_block.alpha": torch.tensor(1.0)}


def scale_of_fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(1.0)}


def fused_loha(rows: int, others: int) -> dict[str, Tensor]:
    """Return a LoHa of the layer that is three in diffusers, [96, 32] in all."""
    shapes = {"hada_w1_a": (rows, 2), "hada_w1_b": (2, 32), "hada_w2_a": (others, 2), "hada_w2_b": (2, 32)}
    made = {f"lora_unet_double_blocks_0_img_attn_qkv.{part}": torch.ones(shape) for part, shape in shapes.items()}
    return {name: z for name, z in made.items() if z.numel()}


def a_row_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return fused_loha(97, 96)


def a_row_less(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return fused_loha(96, 95)


def a_factor_less(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return fused_loha(0, 96)


def three_factors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoHa that lacks a factor, of a layer that only diffusers knows."""
    return {name.replace("double_blocks_0", "some"): z for name, z in a_factor_less(tensors).items()}


CHANGED: dict[Callable[[dict[str, Tensor]], dict[str, Tensor]], str] = {
    nan_scale: r"alpha is not finite",
    no_scale: r"the scale \(alpha\) of \S+ is 0.0, expected more than 0",
    half_unknown: r"another base than this FluxPipeline.*8 of its 34 tensors are of no module of the transformer",
    lacking: r"lacks its matrix B",
    wider: r"another network than this FluxTransformer2DModel.*the layer has \[32, 32\]",
    of_lycoris: r"holds several kinds of adapter, .*a LoKr \(\S+lokr_w1\), a LoRA",
    several_scales: r"\S+alpha has shape \[3\], expected one number",
    of_no_rank: r"another network than this FluxTransformer2DModel.*shapes \[0, \d+\] and \[\d+, 0\]",
    with_text: r"1 of its 35 tensors are of no module of the transformer: text_encoder.* save the file without such",
    in_two_prefixes: r"base_model.model.(\S+) and transformer.\1 are both the [AB] of single_\S+; leave one",
    of_two_names: r"holds several adapters \(0, 1\); save each into a file of its own",
    sides_of_two_names: r"holds several adapters \(one, two\); save each into a file of its own",
    of_two_lines: r"the name of the tensor '\S+\\n\S+' has characters that are not printed",
    down_and_a: r"lora_A.weight and \S+lora_down.weight are both the A of",
    kohya_beside: r"lora_unet_\S+lora_down.weight and \S+lora_A.weight are both the A of",
    fused_and_split: r"double_blocks.0.img_attn.qkv and \S+ are both of transformer_blocks.0.attn.to_[qkv]; leave",
    unknown_twice: r"some.block.lora_A.weight and unet.some.block.lora_A.weight are both the A of some_block",
    of_columns: r"dora_scale has shape \[1, 32\], the magnitudes of columns .*train it with wd_on_out=True",
    one_magnitude_more: r"magnitudes \(DoRA\) of \S+to_k have shape \[33\], the layer has 32 rows",
    a_magnitude_alone: r"magnitudes \(DoRA\) of \S+to_k have shape \[\], the layer has 32 rows",
    magnitudes_of_some: r"has magnitudes \(DoRA\) of \S+to_k and none of",
    of_a_kernel: r"another network .*shapes \[2, 32\] and \[32, 2, 2\], the layer has \[32, 32\]",
    of_no_shape: r"another network .*shapes \[2, 32\] and \[\], the layer has",
    huge_scale: r"the scale \(alpha\) of \S+to_k is \S+, expected between 1e-06 and 1e\+09",
    whole_numbers: r"lora_A.weight is of dtype int8, expected float32, bfloat16",
    scale_alone: "holds lora_unet_some_block.alpha and no matrix beside it",
    scale_of_fused: r"double_blocks_0_img_attn_qkv lacks its matrix A and B",
    a_row_more: r"qkv: its hada_w1_a has shape \[97, 2\], where the network takes 96 rows",
    a_row_less: r"qkv: its hada_w2_a has shape \[95, 2\], where the network takes 96 rows",
    a_factor_less: r"qkv: its hada_w1_a is not there, where the network takes 96 rows",
    three_factors: r"of the factors of \S+some_img_attn_qkv there are only hada_w1_b, hada_w2_a, hada_w2_b",
    truths: r"lora_A.weight is of dtype bool",
    complex_numbers: r"lora_A.weight is of dtype complex64",
}


@pytest.mark.parametrize("change", CHANGED, ids=lambda change: change.__name__)
def test_an_adapter_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    pipe, file = tiny_flux(), tmp_path / LORA_FILE
    save_file({name: z.contiguous() for name, z in change(tensors).items()}, file)
    with pytest.raises(ConfigError, match=CHANGED[change]) as refused:
        read_adapters(BEGIN, str(file), pipe, experts(pipe))
    assert str(refused.value).startswith(f"{BEGIN}: {file}")
    assert "\n" not in str(refused.value)
    assert not any("lora" in name for name, _ in pipe.transformer.named_modules())
