"""Adapters of every pipeline of the zoo, written in each format and read back bit by bit; no network runs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignment.checkpoints.adapter_files import trained_adapters
from alignment.checkpoints.artifacts import Classes
from alignment.checkpoints.formats import check_parts, write_form
from alignment.checkpoints.whole import check_originals
from alignment.errors import ConfigError
from alignment.policy.networks.adapter_kinds import Adapter, alpha_of
from alignment.policy.networks.adapter_places import LORA_FILE, PEFT_FILE
from alignment.policy.networks.adapters import read_adapters
from alignment.policy.networks.loading import experts
from alignment.policy.networks.module_names import to_original
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.networks.tuning import fold
from alignment.policy.networks.weights import Weights
from tests.pipelines import format_table
from tests.pipelines.format_table import NO, PART, YES
from tests.pipelines.zoo import ZOO, Member

LORA = Lora(2, alpha=3, dora=True, ranks={"to_q": 1})
"""Two ranks, magnitudes, and an alpha that is not the rank and not twice or half of it: folded in, it would be seen."""


WIDE = {"num_attention_heads": 24, "attention_head_dim": 128}
PUBLISHED: dict[str, dict[str, int]] = {
    "FluxTransformer2DModel": WIDE, "ChromaTransformer2DModel": WIDE, "HunyuanVideoTransformer3DModel": WIDE,
    "Lumina2Transformer2DModel": {"hidden_size": 2304, "num_attention_heads": 24, "num_kv_heads": 8},
    "UNet2DConditionModel": {"layers_per_block": 2},
}  # fmt: skip
"""Sizes of what is published, where diffusers reads no others from single files."""

HALF_READ = (
    "ChromaTransformer2DModel", "WanVACETransformer3DModel", "Flux2Transformer2DModel", "Lumina2Transformer2DModel",
    "HunyuanVideoTransformer3DModel",
)  # fmt: skip
"""Networks whose loader does not know all of their modules by ComfyUI's names, or at published sizes alone."""


def trained(member: Member, lora: Lora = LORA) -> dict[str, Adapter]:
    """Return adapters of copies of a member's networks that were moved."""
    weights = Weights(copy.deepcopy(experts(member.pipe)), PolicySpec("somewhere", lora=lora), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights.trainable.values():
            weight += torch.randn(weight.shape, generator=generator)
    return trained_adapters(weights)


def same(found: Adapter, wanted: Adapter) -> bool:
    """Whether two adapters are the same numbers; alphas are stored as float32."""
    tensors = found.weights.keys() == wanted.weights.keys() and all(
        torch.equal(tensor, found.weights[name]) for name, tensor in wanted.weights.items()
    )
    alphas = [[torch.tensor(alpha_of(each, name)) for name in wanted.modules] for each in (found, wanted)]
    return tensors and all(torch.equal(a, b) for a, b in zip(*alphas, strict=True))


def mark(form: Any, member: Member, adapters: Mapping[str, Adapter], folder: Path) -> str:
    """Write adapters in a format, read them back as any user's file is read, and return what the table says of it."""
    networks = experts(member.pipe)
    for name, adapter in adapters.items():
        path = folder / form / name / (PEFT_FILE if form == "peft" else LORA_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_form(adapter, path, form, type(networks[name]).__name__, {"run": "zoo"})
        except ConfigError as error:
            if "different scales" in str(error):  # of matrices that are one there
                return mark(form, member, trained(member, replace(LORA, ranks={})), folder)
            known = (f"no names for the modules of {type(networks[name]).__name__}", "adapt nothing of")
            return NO if any(words in str(error) for words in known) else ""
        place = str(path.parent if form == "peft" else path)
        found = read_adapters("checkpoint", place, member.pipe, {name: networks[name]})[name]
        assert same(found, adapter), (form, name)
        if form == "comfyui":
            diffusers_agrees(member, name, adapter, load_file(path))
    return YES


def diffusers_agrees(member: Member, component: str, adapter: Adapter, file: Mapping[str, Tensor]) -> None:
    """Compare what a pipeline's own loader makes of ComfyUI's names; without alphas, which it multiplies in."""
    kind: Any = type(member.pipe)
    if not hasattr(kind, "lora_state_dict") or type(experts(member.pipe)[component]).__name__ in HALF_READ:
        return
    made = kind.lora_state_dict({key: z for key, z in file.items() if key.endswith(".weight")})
    state: Mapping[str, Tensor] = made[0] if isinstance(made, tuple) else made
    wanted = {key: z for key, z in adapter.weights.items() if key.endswith(".weight")}
    assert sorted(float(z.double().sum()) for z in state.values()) == sorted(
        float(z.double().sum()) for z in wanted.values()
    )
    if component != "unet":  # whose names are diffusers' older ones
        assert {key.removeprefix("transformer.") for key in state} == set(wanted)


def test_every_format_comes_back_bit_by_bit(
    member: Member, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    adapters = trained(member)
    loaded = {"lora": YES, "adapter": PART, "alone": NO}[Classes.of(member.pipe).layout("LoRA")]
    marks = [mark(form, member, adapters, tmp_path) for form in ("diffusers", "peft", "comfyui", "kohya")]
    marks = [loaded if marks[0] == YES else marks[0], *marks[1:], merged(member, adapters, tmp_path), originals(member)]
    row = [f"`{type(next(iter(experts(member.pipe).values()))).__name__}`", *marks]
    record_property("formats", [member.name, row[0], row[1:]])
    assert "WRITE_TABLE" in os.environ or format_table.read()[member.name] == row


def merged(member: Member, adapters: Mapping[str, Adapter], folder: Path) -> str:
    """Fold adapters in, write the networks, and compare them with what lies on the disk."""
    for name, adapter in adapters.items():
        network = copy.deepcopy(experts(member.pipe)[name])
        before = {key: z.clone() for key, z in network.state_dict().items()}
        fold(network, adapter, 1.0)
        network.save_pretrained(folder / "merged" / name)
        after = network.state_dict()
        assert after.keys() == before.keys()
        assert {key for key, z in after.items() if not torch.equal(z, before[key])} == {
            f"{module}.weight" for module in adapter.modules
        }
        check_parts(folder / "merged" / name, after)
    return YES


def originals(member: Member) -> str:
    """Name the rows of networks as their authors do, and let diffusers read them back; no network has columns."""
    for network in experts(member.pipe).values():
        kind = type(network)
        with torch.device("meta"):
            sized = kind.from_config({**network.config, **PUBLISHED.get(kind.__name__, {})})
        generator = torch.Generator().manual_seed(0)
        rows = {
            name: torch.randn(tensor.shape[:1] + (1,) * (tensor.ndim - 1), generator=generator)
            for name, tensor in sized.state_dict().items()
        }
        try:
            check_originals(kind.__name__, sized.config, to_original(kind.__name__, sized.config, rows), rows)
        except ConfigError as error:
            return NO if "none are known that diffusers reads back" in str(error) else ""
    return YES


@pytest.mark.skipif("WRITE_TABLE" in os.environ, reason="the table is being written")
def test_the_table_has_a_row_a_pipeline() -> None:
    assert list(format_table.read()) == list(ZOO)
