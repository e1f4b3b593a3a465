"""What adapters are made of, by PEFT's names: low-rank matrices (LoRA), and the factors of LyCORIS that PEFT has.

A LoRA adds `B A`; a LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098) the product, number by number, of two such; a LoKr
(Yeh et al. 2023, arXiv:2309.14859) the Kronecker product of two matrices, each whole or itself `B A`.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.lokr.layer import factorization
from peft.utils import get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from alignment.errors import ConfigError
from alignment.policy.networks.reading.peft_settings import PeftSettings

Config = LoraConfig | LoHaConfig | LoKrConfig
"""Of PEFT; one for all modules of a network."""
Parts = dict[str, dict[str, Tensor]]
"""Tensors by what they are ("A", "B", "alpha", "magnitude", "hada_w1_a", ...), by module."""

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
_KINDS: dict[str, str] = {
    "A": "LoRA", "B": "LoRA", "magnitude": "LoRA", **dict.fromkeys(LOHA, "LoHa"), **dict.fromkeys(LOKR, "LoKr")
}  # fmt: skip
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""What PEFT's LoHa and LoKr adapt."""
_SCALES = (1e-6, 1e9)
"""Between which an alpha is: programs write up to some thousands."""
_MODULE = re.compile(r"(.+)\.(?:lora_A\.weight|hada_w1_a|lokr_w2(?:_a)?)")
"""One tensor of each module."""


@dataclass(frozen=True)
class Adapter:
    """An adapter of one network.

    Attributes:
        origin: Where it comes from, for messages.
        weights: Its tensors by PEFT's names, without that of the adapter: `MODULE.lora_A.weight`, `MODULE.hada_w1_a`.
        config: What PEFT makes of it.
    """

    origin: str
    weights: Mapping[str, Tensor]
    config: Config

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules it adapts."""
        return tuple(found[1] for found in map(_MODULE.fullmatch, self.weights) if found)

    @property
    def ranks(self) -> set[int]:
        """Ranks of its updates."""
        return {rank_of(self, module) for module in self.modules}

    @property
    def kind(self) -> str:
        """What it is: LoRA, LoHa or LoKr; a LoRA with magnitudes is a DoRA."""
        if isinstance(self.config, LoraConfig):
            return "DoRA" if self.config.use_dora else "LoRA"
        return "LoHa" if isinstance(self.config, LoHaConfig) else "LoKr"

    def parts(self, module: str) -> dict[str, Tensor]:
        """Return the factors of a module by LyCORIS's names; nothing of a LoRA, whose matrices have several names."""
        names = (*LOHA, *LOKR)
        return {name: self.weights[key] for name in names if (key := f"{module}.{name}") in self.weights}


def kind_of(where: str, parts: Parts) -> str:
    """Return what the adapter in a file is: LoRA, LoHa or LoKr.

    Raises:
        ConfigError: If there are several kinds in it, which PEFT does not put into one adapter.
    """
    kinds = {_KINDS[part]: f"{name}.{part}" for name, found in parts.items() for part in found if part in _KINDS}
    if len(kinds) > 1 and (scaled := next((name for name, found in parts.items() if "magnitude" in found), None)):
        other = next(kind for kind in sorted(kinds) if kind != "LoRA")
        raise ConfigError(f"{where} holds the dora_scale of {scaled}, and PEFT has no magnitudes (DoRA) of a {other}")
    if len(kinds) > 1:
        said = ", ".join(f"a {kind} ({example})" for kind, example in sorted(kinds.items()))
        raise ConfigError(f"{where} holds several kinds of adapter, which PEFT does not put into one: {said}")
    return next(iter(kinds), "LoRA")


def config_of(parts: Mapping[str, Mapping[str, Tensor]], scales: Mapping[str, float], *, rslora: bool) -> LoraConfig:
    """Return what makes PEFT build low-rank adapters of these shapes and scales.

    Args:
        parts: Matrices "A" and "B", and perhaps "magnitude", by module.
        scales: Alpha by module.
        rslora: Whether alpha is divided by the root of the rank.
    """
    rank, ranks, alpha, alphas = _patterns({name: len(part["A"]) for name, part in parts.items()}, scales)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes any number
        rank_pattern=ranks,
        alpha_pattern=alphas,
        target_modules=_targets(parts),
        use_dora=any("magnitude" in part for part in parts.values()),
        use_rslora=rslora,
    )


def factors_config(where: str, parts: Parts, told: PeftSettings, layers: Mapping[str, nn.Module]) -> Config:
    """Return what makes PEFT build the factors of a LoHa or LoKr, whose scale is alpha over the rank.

    A LoKr of two whole matrices has no rank, and no scale but the one that PEFT's settings give it.

    Args:
        where: For messages.
        parts: The factors, and perhaps "alpha", by module.
        told: PEFT's settings.
        layers: Layers of the network by name.

    Raises:
        ConfigError: If PEFT has no such factors, or a scale is not above 0.
    """
    kind = next(kind for found in parts.values() for part, kind in _KINDS.items() if part in found)
    for name in parts:
        if not isinstance(layers[name], _LAYERS):
            raise ConfigError(f"{where}: {name} is a {type(layers[name]).__name__}, for which PEFT has no {kind}")
    ranks = {name: _rank(where, name, found, told) for name, found in parts.items()}
    alphas = {name: _alpha(name, found, ranks[name], told) for name, found in parts.items()}
    check_scales(where, alphas)
    rank, ranks, alpha, alphas = _patterns(ranks, {name: plain(alpha) for name, alpha in alphas.items()})
    common: dict[str, Any] = {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": _targets(parts),
        "use_effective_conv2d": any("hada_t1" in found or "lokr_t2" in found for found in parts.values()),
    }
    if kind == "LoHa":
        config: Config = LoHaConfig(**common)
    else:
        both = any("lokr_w1_a" in found for found in parts.values())
        config = LoKrConfig(**common, decompose_both=both, decompose_factor=_factor(parts, layers))
    _check_shapes(where, kind, parts, config, layers)
    return config


def check_scales(where: str, alphas: Mapping[str, float]) -> None:
    """Refuse a scale that switches an update off, or turns it round, or that nobody can have meant.

    Raises:
        ConfigError: Naming the module.
    """
    smallest, largest = _SCALES
    for name, alpha in alphas.items():
        if not smallest <= alpha <= largest:
            wanted = f"between {smallest:g} and {largest:g}" if alpha > 0 else "more than 0"
            raise ConfigError(f"{where}: the scale (alpha) of {name} is {alpha}, expected {wanted}")


def lone_scale(names: Collection[str]) -> str | None:
    """Return the name of an alpha without a matrix beside it, if there is one: converters drop such without a word."""
    alphas = {name.removesuffix(".alpha"): name for name in names if name.endswith(".alpha")}
    for name in set(names).difference(alphas.values()):
        for k in (k for k, letter in enumerate(f"{name}.") if letter == "."):
            alphas.pop(name[:k], None)
    return min(alphas.values(), default=None)


def plain(alpha: float) -> float:
    """Return a whole number as such."""
    return alpha if alpha % 1 else int(alpha)


def rank_of(adapter: Adapter, module: str) -> int:
    """Return the rank of the update of a module."""
    if isinstance(adapter.config, LoraConfig):
        return len(adapter.weights[f"{module}.lora_A.weight"])
    patterns = adapter.config.rank_pattern or {}
    return int(patterns.get(get_pattern_key(list(patterns), module), adapter.config.r))


def alpha_of(adapter: Adapter, module: str) -> float:
    """Return what the update of a module is multiplied with, times its rank: what other programs call alpha."""
    config = adapter.config
    patterns = config.alpha_pattern or {}
    usual = config.lora_alpha if isinstance(config, LoraConfig) else config.alpha
    alpha = float(patterns.get(get_pattern_key(list(patterns), module), usual))
    rooted = isinstance(config, LoraConfig) and config.use_rslora
    return alpha * math.sqrt(rank_of(adapter, module)) if rooted else alpha


def scale_of(adapter: Adapter, module: str) -> float:
    """Return what the update of a module is multiplied with."""
    return alpha_of(adapter, module) / rank_of(adapter, module)


def _patterns(
    ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> tuple[int, dict[str, int], float, dict[str, float]]:
    """Return the usual rank and the others, the usual alpha and the others, as PEFT's settings have them."""
    rank = collections.Counter(ranks.values()).most_common(1)[0][0]
    alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
    return (
        rank,
        {f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank},
        alpha,
        {f"^{re.escape(name)}": a for name, a in alphas.items() if a != alpha},
    )


def _targets(parts: Mapping[str, object]) -> str:
    """Return the modules as text, which PEFT matches whole; a list it matches by its endings."""
    return "|".join(map(re.escape, sorted(parts)))


def _rank(where: str, name: str, found: Mapping[str, Tensor], told: PeftSettings) -> int:
    """Return the rank of a module's factors; of two whole matrices, one at which PEFT leaves them whole."""
    ranks = {len(z) for part, z in found.items() if part.endswith("_b") and z.ndim == 2}
    if len(ranks) > 1:
        said = " and ".join(map(str, sorted(ranks)))
        raise ConfigError(f"{where}: the factors of {name} have ranks {said}, where PEFT has one")
    if ranks:
        return ranks.pop()
    whole = [max(z.shape[:2]) for part, z in found.items() if part == "lokr_w2" and z.ndim > 1]
    given = told.rank(name)
    return given if given is not None and given >= max(whole, default=1) else max(whole, default=1)


def _alpha(name: str, found: Mapping[str, Tensor], rank: int, told: PeftSettings) -> float:
    if "alpha" in found:
        told.check_alpha(name, "alpha", float(found["alpha"]))
    given, r = told.alpha(name, "alpha"), told.rank(name)
    if given is not None:
        return given if r in (rank, None) else given / r * rank
    whole = "lokr_w1" in found and "lokr_w2" in found
    return float(rank) if whole or "alpha" not in found else float(found["alpha"])


def _factor(parts: Parts, layers: Mapping[str, nn.Module]) -> int:
    """Return the number from which PEFT makes the shapes of all Kronecker factors; the one that fits most of them."""
    wanted: list[tuple[tuple[int, ...], tuple[int, int]]] = []
    for name, found in parts.items():
        rows, columns = (found.get(f"lokr_w1{part}", found.get("lokr_w1")) for part in ("_a", "_b"))
        shape = shape_of(layers[name])
        if rows is not None and columns is not None and shape is not None:
            wanted.append((shape, (rows.shape[0], columns.shape[-1])))
    numbers = (-1, *sorted({side for _, sides in wanted for side in sides}))
    return max(
        numbers,
        key=lambda number: sum(
            tuple(factorization(size, number)[0] for size in shape[:2]) == sides for shape, sides in wanted
        ),
    )


def _check_shapes(where: str, kind: str, parts: Parts, config: Config, layers: Mapping[str, nn.Module]) -> None:
    """Compare factors with those that PEFT makes for the layers, which it does on a device without memory."""
    skeleton = nn.Module()
    for name in parts:
        *parents, last = name.split(".")
        place = skeleton
        for parent in parents:
            if parent not in dict(place.named_children()):
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        place.add_module(last, _hollow(layers[name]))
    inject_adapter_in_model(config, skeleton, "default")
    made = get_peft_model_state_dict(skeleton, adapter_name="default")
    for name, found in parts.items():
        wanted = {part: tuple(made[f"{name}.{part}"].shape) for part in _KINDS if f"{name}.{part}" in made}
        shapes = {part: tuple(z.shape) for part, z in found.items() if part != "alpha"}
        for part in sorted(wanted.keys() | shapes.keys()):
            if wanted.get(part) != shapes.get(part):
                has, takes = ("none" if s.get(part) is None else list(s[part]) for s in (shapes, wanted))
                raise ConfigError(
                    f"{where} is a {kind} of another network, or one that PEFT cannot make: the {part} of {name} has "
                    f"shape {has}, the layer takes {takes}"
                )


def _hollow(layer: nn.Module) -> nn.Module:
    """Return a layer of the same shape without numbers."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, device="meta")
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    made: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    return made(
        layer.in_channels, layer.out_channels, layer.kernel_size, groups=layer.groups, device=torch.device("meta")
    )


def sides(found: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the rows and columns of the update that the factors of a module make; a kernel's numbers are columns."""
    if "hada_w1_a" in found and "hada_w1_b" in found:
        return found["hada_w1_a"].shape["hada_t1" in found], found["hada_w1_b"].shape[1]
    counts = [1, 1]
    for factor in ("lokr_w1", "lokr_w2"):
        tucker = factor == "lokr_w2" and "lokr_t2" in found
        for k, part in enumerate(("_a", "_b")):
            matrix = found.get(factor, found.get(f"{factor}{part}"))
            counts[k] *= 0 if matrix is None else matrix.shape[k or int(tucker)]
    return counts[0], counts[1]


def rows_of(where: str, found: Mapping[str, Tensor], rows: Tensor, total: int) -> Mapping[str, Tensor]:
    """Return the factors of some rows of an update, which a LoHa has in its first matrices.

    Args:
        where: For messages.
        found: The factors of all rows.
        rows: Numbers of those that are wanted.
        total: How many rows there have to be.

    Raises:
        ConfigError: If there are more or fewer, a matrix of rows is lacking, or they are factors of all rows together.
    """
    if any(part in LOHA for part in found):
        dimension, cut = int("hada_t1" in found), dict(found)
        for part in ("hada_w1_a", "hada_w2_a"):
            if part not in found or found[part].shape[dimension] != total:
                said = f"has shape {list(found[part].shape)}" if part in found else "is not there"
                raise ConfigError(f"{where}: its {part} {said}, where the network takes {total} rows")
            cut[part] = found[part].index_select(dimension, rows)
        return cut
    if not torch.equal(rows, torch.arange(sides(found)[0])):
        raise ConfigError(
            f"{where} is a LoKr of a matrix that is several in diffusers, and a Kronecker product is not cut into them"
        )
    return found


def shape_of(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of a layer's weight, rounded or not; None of what no adapter is for."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return tuple(module.weight.shape)
    return None
