"""Matrices that are one in their authors' network and several in diffusers': adapters put together, and taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignment.checkpoints.formats import write_form
from alignment.errors import ConfigError
from alignment.policy.networks.adapter_kinds import Adapter, config_of
from alignment.policy.networks.fused import apart, together
from alignment.policy.networks.module_names import OriginalNames, Spot, original_names, spots

SIZES = (6, 2, 4)
MODULES = ("to_q", "to_k", "to_v")


def part(rank: int, rows: int, scale: float = 1.5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "A": torch.randn(rank, 5, generator=generator), "B": torch.randn(rows, rank, generator=generator),
        "alpha": torch.tensor(scale * rank), "magnitude": torch.rand(rows, generator=generator),
    }  # fmt: skip


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(z, theirs[name]) for name, z in mine.items())


@pytest.mark.parametrize("ranks", [(2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_put_together_comes_apart_bit_by_bit(ranks: tuple[int, ...], swapped: bool) -> None:
    parts = [part(rank, rows) for rank, rows in zip(ranks, SIZES, strict=True)]
    whole = together("qkv", parts, swapped=swapped)
    assert whole["A"].shape == (sum(ranks), 5)
    assert whole["alpha"] == 1.5 * sum(ranks)
    updates = torch.cat([z["B"] @ z["A"] for z in parts])
    made = whole["B"] @ whole["A"]
    torch.testing.assert_close(torch.cat(made.chunk(2)[::-1]) if swapped else made, updates)
    found = apart("here", whole, Spot(MODULES, swapped), SIZES)
    assert list(found) == list(MODULES)
    assert all(same(found[name], wanted) for name, wanted in zip(MODULES, parts, strict=True))


def test_a_matrix_that_is_not_several_stays_as_it_is() -> None:
    whole = {"A": torch.ones(2, 5), "B": torch.arange(24.0).reshape(12, 2) + 1, "alpha": torch.tensor(3.0)}
    found = apart("here", whole, Spot(MODULES), SIZES)
    for name, b in zip(MODULES, whole["B"].split(list(SIZES)), strict=True):
        assert same(found[name], {**whole, "B": b})
    untrained = apart("here", {**whole, "B": torch.zeros(12, 2)}, Spot(MODULES), SIZES)
    assert all(len(z["A"]) == 2 for z in untrained.values())
    for changed, sizes, says in (
        (whole, (6, 3, 4), r"shapes \[2, 5\] and \[12, 2\], not of 13 rows"),
        ({**whole, "A": torch.ones(3, 5)}, SIZES, r"here has matrices of shapes \[3, 5\] and \[12, 2\]"),
        ({**whole, "B": torch.ones(12)}, SIZES, r"here has matrices of shapes"),
        ({"alpha": torch.tensor(1.0)}, SIZES, "here lacks its matrix A and B"),
    ):
        with pytest.raises(ConfigError, match=says):
            apart("here", changed, Spot(MODULES), sizes)


def test_different_scales_and_a_part_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"qkv is one matrix there and 2 in diffusers, .*: 1\.0, 1\.5; use"):
        together("qkv", [part(2, 6), part(2, 4, scale=1.0)], swapped=False)
    name = "transformer_blocks.0.attn.to_q"
    matrices = {"A": torch.ones(1, 4), "B": torch.ones(4, 1)}
    weights = {f"{name}.lora_{side}.weight": z for side, z in matrices.items()}
    adapter = Adapter("transformer", weights, config_of({name: matrices}, {name: 1.0}, rslora=False))
    with pytest.raises(ConfigError, match=rf"img_attn_qkv, for 3 of FluxTransformer2DModel, of which {name} alone"):
        write_form(adapter, tmp_path / "a.safetensors", "kohya", "FluxTransformer2DModel", {})
    assert not (tmp_path / "a.safetensors").exists()


def test_the_last_block_may_be_otherwise() -> None:
    names = original_names("SD3Transformer2DModel")
    assert names is not None
    last, other = (f"transformer_blocks.{k}.norm1_context.linear" for k in (23, 2))
    found = spots([last, other], names, 23)
    assert {spot.modules[0]: spot.swapped for spot in found.values()} == {last: True, other: False}
    assert names.slot(last) is None  # nobody says which block is the last
    assert OriginalNames().slot(last) is None
