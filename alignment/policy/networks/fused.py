"""Adapters of matrices that are one in their authors' network and several in diffusers': put together, and apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignment.errors import ConfigError
from alignment.policy.networks.adapter_kinds import rows_of
from alignment.policy.networks.module_names import Spot, halves_swapped


def apart(where: str, found: Mapping[str, Tensor], spot: Spot, sizes: Sequence[int]) -> dict[str, dict[str, Tensor]]:
    """Return what an adapter of a matrix is for each of diffusers' modules in it.

    Columns of B that are 0 in all rows of a module are those of others, and are left out with their rows of A, and
    with their share of alpha.

    Args:
        where: For messages.
        found: Its tensors.
        spot: The matrix.
        sizes: Rows of each module.

    Raises:
        ConfigError: If it lacks a matrix, has another number of rows, or is of a kind that cannot be cut.
    """
    if not found.keys() <= {"A", "B", "alpha", "magnitude"}:
        return _factors_apart(where, found, spot, sizes)
    if lacking := [side for side in ("A", "B") if side not in found]:
        raise ConfigError(f"{where} lacks its matrix {' and '.join(lacking)}")
    a, b = found["A"], found["B"]
    if a.ndim != 2 or b.ndim != 2 or not 0 < len(a) == b.shape[1] or len(b) != sum(sizes):
        raise ConfigError(
            f"{where} has matrices of shapes {list(a.shape)} and {list(b.shape)}, not of {sum(sizes)} rows"
        )
    if "magnitude" in found and found["magnitude"].numel() != sum(sizes):
        raise ConfigError(f"{where} has magnitudes of shape {list(found['magnitude'].shape)}, not of {sum(sizes)} rows")
    whole = {part: halves_swapped(z) if spot.swapped and part in ("B", "magnitude") else z for part, z in found.items()}
    made: dict[str, dict[str, Tensor]] = {}
    for k, (module, b) in enumerate(zip(spot.modules, whole["B"].split(list(sizes)), strict=True)):
        used = (b != 0).any(0)
        # Without an alpha beside it its scale goes by its rank, which then stays what it is.
        if len(sizes) == 1 or not bool(used.any()) or "alpha" not in whole:
            used = torch.ones_like(used)
        part = made[module] = {"A": whole["A"][used].contiguous(), "B": b[:, used].contiguous()}
        if "alpha" in whole:
            part["alpha"] = whole["alpha"] / len(used) * int(used.sum())
        if "magnitude" in whole:
            part["magnitude"] = whole["magnitude"].flatten().split(list(sizes))[k].contiguous()
    return made


def _factors_apart(
    where: str, found: Mapping[str, Tensor], spot: Spot, sizes: Sequence[int]
) -> dict[str, dict[str, Tensor]]:
    total = sum(sizes)
    numbers = torch.arange(total)
    rows = (halves_swapped(numbers) if spot.swapped else numbers).split(list(sizes))
    return {module: dict(rows_of(where, found, k, total)) for module, k in zip(spot.modules, rows, strict=True)}


def together(name: str, parts: Sequence[Mapping[str, Tensor]], *, swapped: bool) -> dict[str, Tensor]:
    """Return low-rank matrices of several modules as those of one: the first ones below each other, the second aslant.

    Args:
        name: Of the one matrix, for messages.
        parts: "A", "B", "alpha" and perhaps "magnitude" of each.
        swapped: Whether its halves are in the other order than diffusers'.

    Raises:
        ConfigError: If their scales differ, which one matrix cannot have.
    """
    ranks = [len(part["A"]) for part in parts]
    scales = {float(part["alpha"]) / rank for part, rank in zip(parts, ranks, strict=True)}
    if len(scales) > 1:
        said = ", ".join(map(str, sorted(scales)))
        raise ConfigError(
            f"{name} is one matrix there and {len(parts)} in diffusers, whose adapters have different scales (alpha / "
            f"rank): {said}; use --as diffusers, or --as merged for the whole pipeline"
        )
    made = {
        "A": torch.cat([part["A"] for part in parts]),
        "B": torch.block_diag(*(part["B"] for part in parts)),
        "alpha": torch.tensor(scales.pop() * sum(ranks)),
    }
    if "magnitude" in parts[0]:
        made["magnitude"] = torch.cat([part["magnitude"].flatten() for part in parts])
    return {part: halves_swapped(z) if swapped and part in ("B", "magnitude") else z for part, z in made.items()}
