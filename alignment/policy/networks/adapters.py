"""Adapters that people bring: found, read, and named as the modules that they adapt.

A file may name modules one by one (as diffusers and PEFT do; with underscores for dots, as kohya's tools do; by the
names of a model's authors, as ComfyUI does), and is then read number by number. Where those names are of other matrices
than diffusers has, what they mean is diffusers' to say. Every name has to be understood and every matrix has to fit
before anything is changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignment.errors import ConfigError
from alignment.policy.networks.adapter_kinds import (
    LOHA,
    LOKR,
    Adapter,
    Parts,
    check_scales,
    config_of,
    factors_config,
    kind_of,
    lone_scale,
    plain,
    rows_of,
    shape_of,
    sides,
)
from alignment.policy.networks.adapter_places import PEFT_CONFIG, Place
from alignment.policy.networks.fused import apart
from alignment.policy.networks.module_names import FLAT, names_of
from alignment.policy.networks.reading.by_diffusers import ByDiffusers
from alignment.policy.networks.reading.names import NAME, PARTS
from alignment.policy.networks.reading.peft_settings import PeftSettings

SETTINGS = "lora_adapter_metadata"
"""Where diffusers writes how an adapter was made, in the header of its file."""

_PREFIXES = ("base_model.model.", "unet.", "transformer.", "diffusion_model.", "model.diffusion_model.")
"""What tools write before the names of modules."""
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
"""What they write before names with underscores for dots."""
_NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Dtypes that torch does not compute in, and whose numbers are float32's, too."""
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""What an alpha may be besides."""
_TEXT = re.compile(r"(?:base_model\.model\.)?(text_encoder|lora_te|te\d?_|text_model|cond_stage_model|conditioner)")
"""How names of text encoders begin."""
_FOREIGN = re.compile(
    r"\.(diff|diff_b|[wb]_norm|oft_\w+|boft_\w+|rescale|lora_mid\.weight|on_input|lokr_t1|scalar|[ab][12]\.weight|set_weight)$"
)
"""What other kinds of adapter have: whole differences, norms, rotations (OFT), IA3, GLoRA, three matrices."""


def read_adapters(key: str, place: str, pipe: Any, networks: Mapping[str, Any]) -> dict[str, Adapter]:
    """Return the adapters of a file, a folder or a hub id, by the component that they are for.

    Args:
        key: Of the config, for messages.
        place: Where they are.
        pipe: The pipeline, whose class knows its authors' names of modules.
        networks: Its trained networks by name, the main one first; nothing in them is changed.

    Raises:
        ConfigError: If there is none, it is no safetensors file, a number in it is not finite, or it is of other
            modules than those of the networks.
    """
    main = next(iter(networks))
    found = Place(key, place).files(main, tuple(networks))
    return {
        component: _Reading(f"{key}: {path}", pipe, component, main, networks[component]).adapter(path, settings)
        for component, (path, settings) in found.items()
    }


@dataclass(frozen=True)
class NewAdapter:
    """An adapter that is not there yet, as far as it matters to those under it.

    Attributes:
        modules: Names of the modules that it will adapt.
        kind: What it will be, LoRA or DoRA.
    """

    modules: Sequence[str]
    kind: str
    origin: str = "policy.lora: the new adapter"


def check_apart(stack: Sequence[Mapping[str, Adapter]], trained: Mapping[str, Adapter | NewAdapter]) -> None:
    """Refuse adapters that do not add up: a magnitude (DoRA) is that of a weight with one update.

    Args:
        stack: Frozen adapters by component, in their order.
        trained: What is trained on top.

    Raises:
        ConfigError: Naming the first layer that two of them touch.
    """
    everything: list[Mapping[str, Adapter | NewAdapter]] = [*stack, trained]
    for k, later in enumerate(everything):
        for component, adapter in later.items():
            for other in (earlier[component] for earlier in everything[:k] if component in earlier):
                under = set(other.modules)
                shared = [name for name in adapter.modules if name in under]
                if shared and "DoRA" in (adapter.kind, other.kind):
                    dora = adapter if adapter.kind == "DoRA" else other
                    new = isinstance(adapter, NewAdapter)
                    raise ConfigError(
                        f"{adapter.origin} and {other.origin} touch the same layer {shared[0]} of the {component}, and "
                        f"{dora.origin.partition(': ')[2]} is a DoRA: its magnitudes are those of one update; leave "
                        f"one of the two out{', or choose other layers (policy.lora.targets)' if new else ''}"
                    )


@dataclass(frozen=True)
class _Reading:
    """One file, read for one network.

    Attributes:
        where: Key and path, for messages.
        pipe: The pipeline.
        component: Name of the network.
        main: Name of the main one, which files of any of them may use.
        network: The network.
    """

    where: str
    pipe: Any
    component: str
    main: str
    network: Any

    def adapter(self, path: Path, settings: Mapping[str, object] | None) -> Adapter:
        tensors, header = self._tensors(path)
        parts = self._parts(tensors)
        told = self._header(header) if settings is None else PeftSettings(f"{self.where}: its {PEFT_CONFIG}", settings)
        kind = kind_of(self.where, parts)
        told.check(kind, tuple(parts), magnitudes=any("magnitude" in part for part in parts.values()))
        if kind != "LoRA":
            config = factors_config(self.where, parts, told, dict(self.network.named_modules()))
            factors = {f"{name}.{part}": z for name, found in parts.items() for part, z in found.items()}
            return Adapter(self.where, {key: z for key, z in factors.items() if not key.endswith(".alpha")}, config)
        self._check(parts, told)
        if told.flag("use_rslora") and (
            beside := next((name for name, part in parts.items() if "alpha" in part), None)
        ):
            raise told.wrong("use_rslora", True, f"false where the file has alphas ({beside}.alpha), or no such alphas")
        scales = {name: _alpha(name, part, told) for name, part in parts.items()}
        check_scales(self.where, scales)
        whole = {name: plain(alpha) for name, alpha in scales.items()}
        config = config_of(parts, whole, rslora=told.flag("use_rslora"))
        weights: dict[str, Tensor] = {}
        for name, part in parts.items():
            weights |= {f"{name}.lora_A.weight": part["A"], f"{name}.lora_B.weight": part["B"]}
            if "magnitude" in part:
                weights[f"{name}.lora_magnitude_vector"] = part["magnitude"]
        return Adapter(self.where, weights, config)

    def _tensors(self, path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
        try:
            with safe_open(path, framework="pt") as file:
                tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{self.where} is not a whole safetensors file: {str(error).rstrip('. ')}") from error
        if not tensors:
            raise ConfigError(f"{self.where} holds no tensor")
        names = {found["adapter"] for found in map(NAME.fullmatch, tensors) if found and found["adapter"]}
        if len(names) > 1:
            several = ", ".join(sorted(names))
            raise ConfigError(f"{self.where} holds several adapters ({several}); save each into a file of its own")
        for name, stored in tensors.items():
            if not name.isprintable():
                raise ConfigError(f"{self.where}: the name of the tensor {name!r} has characters that are not printed")
            part, shape = name.rpartition(".")[2], list(stored.shape)
            tensor = tensors[name] = stored.float() if stored.dtype in _EIGHT_BITS else stored
            whole_alpha = part == "alpha" and tensor.dtype in _WHOLE
            if tensor.dtype not in _NUMBERS and not whole_alpha:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise ConfigError(
                    f"{self.where}: {name} is of dtype {dtype}, expected float32, bfloat16, float16, float64 or float8"
                )
            if not bool(tensor.isfinite().all()):
                raise ConfigError(f"{self.where}: {name} is not finite (NaN or infinity)")
            if part == "dora_scale" and shape[:1] == [1] and tensor.numel() > 1:
                raise ConfigError(
                    f"{self.where}: {name} has shape {shape}, the magnitudes of columns (LyCORIS's wd_on_out=False); "
                    "PEFT has those of rows, [rows, 1]: train it with wd_on_out=True"
                )
            if (part == "alpha" and tensor.numel() != 1) or (part in (*LOHA, *LOKR) and tensor.ndim < 2):
                wanted = "one number" if part == "alpha" else "a matrix"
                raise ConfigError(f"{self.where}: {name} has shape {shape}, expected {wanted}")
        return tensors, header or {}

    def _header(self, header: Mapping[str, str]) -> PeftSettings:
        where = f"{self.where}: {SETTINGS} in its header"
        if SETTINGS not in header:
            return PeftSettings(where, None)
        try:
            told = json.loads(header[SETTINGS])
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is not JSON: {error}") from error
        if not isinstance(told, dict):
            raise ConfigError(f"{where} is not a JSON object")
        names = {key: key.removeprefix(f"{self.component}.").removeprefix(f"{self.main}.") for key in told}
        mine = {name: told[key] for key, name in names.items() if "." not in name}
        return PeftSettings(where, mine or None)  # None where all of it is of other networks

    def _parts(self, tensors: Mapping[str, Tensor]) -> Parts:
        """Return the tensors by module, whichever names the file uses."""
        parts, unknown = self._known(tensors)
        if not unknown:
            return parts
        kind = type(self.pipe)
        if foreign := next((name for name in unknown if _FOREIGN.search(name)), None):
            raise ConfigError(
                f"{self.where} holds {foreign}, which is no part of a LoRA, LoHa or LoKr as PEFT has them, and "
                "cannot be trained or folded in"
            )
        if alone := lone_scale(tensors):
            raise ConfigError(f"{self.where} holds {alone} and no matrix beside it")
        reason = ""
        if issubclass(kind, LoraBaseMixin):
            try:
                factors = any(name.rpartition(".")[2] in (*LOHA, *LOKR) for name in tensors)
                renamed = self._factors_by_diffusers if factors else self._by_diffusers.renamed
                parts, strange = self._known(renamed(tensors))
                if not strange:
                    return parts
                unknown = strange if len(strange) < len(unknown) else unknown
            except ConfigError as error:
                reason = f" (diffusers: {error})"
        if text := next((name for name in unknown if _TEXT.match(name)), None):
            reason += f"; {text} is of a text encoder, and those are not trained: save the file without such tensors"
        some = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise ConfigError(
            f"{self.where} is an adapter of another base than this {kind.__name__}, or in names that nobody knows: "
            f"{len(unknown)} of its {len(tensors)} tensors are of no module of the {self.component}: {some}{reason}"
        )

    @property
    def _by_diffusers(self) -> ByDiffusers:
        return ByDiffusers(type(self.pipe), self.network.config, self.component)

    def _factors_by_diffusers(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return factors by diffusers' names of modules: those that it gives a LoRA whose rows are numbered."""
        modules: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            module, _, part = name.rpartition(".")
            modules.setdefault(module, {})[part] = tensor
        numbered: dict[str, Tensor] = {}
        for k, (name, found) in enumerate(modules.items()):
            rows, columns = sides(found)
            if not rows * columns:
                raise ConfigError(f"{self.where}: of the factors of {name} there are only {', '.join(sorted(found))}")
            flat = f"{FLAT}{name.removeprefix('lycoris_')}" if name.startswith("lycoris_") else name
            numbered |= {
                f"{flat}.lora_down.weight": torch.full((1, columns), float(k)),
                f"{flat}.lora_up.weight": torch.arange(rows, dtype=torch.float32)[:, None],
                f"{flat}.alpha": torch.tensor(1.0),
            }
        made, _ = self._known(self._by_diffusers.renamed(numbered))
        came = {int(lora["A"][0, 0]) for lora in made.values()}
        left = [found for k, found in enumerate(modules.items()) if k not in came]
        named = {f"{name}.{part}": tensor for name, found in left for part, tensor in found.items()}
        for module, lora in made.items():
            name, found = list(modules.items())[int(lora["A"][0, 0])]
            cut = rows_of(f"{self.where}: {name}", found, lora["B"][:, 0].long(), sides(found)[0])
            named |= {f"{module}.{part}": tensor for part, tensor in cut.items()}
        return named

    def _known(self, tensors: Mapping[str, Tensor]) -> tuple[Parts, list[str]]:
        """Return the tensors whose names are those of modules, and the names that are not."""
        shapes = {name: shape for name, m in self.network.named_modules() if (shape := shape_of(m)) is not None}
        layers = self.network.config.get("num_layers")
        spots = names_of(type(self.network).__name__).spots(
            list(shapes), layers - 1 if isinstance(layers, int) else None
        )
        flat = {theirs.replace(".", "_"): theirs for theirs in spots}
        found, said, unknown = Parts(), dict[str, str](), []
        first: dict[tuple[str, str], str] = {}
        for name, tensor in tensors.items():
            part = NAME.fullmatch(name)
            theirs = None if part is None else self._spot(part["module"], spots, flat)
            if part is not None:
                module, what = theirs or self._bare(part["module"]), PARTS[part["part"]]
                if (other := first.setdefault((module, what), name)) != name:
                    raise ConfigError(
                        f"{self.where}: {other} and {name} are both the {what} of {module}; leave one of them out"
                    )
            if part is None or theirs is None:
                unknown.append(name)
            else:
                found.setdefault(theirs, {})[PARTS[part["part"]]] = tensor
                said[theirs] = part["module"]
        parts = Parts()
        for theirs, tensors_of in found.items():
            spot = spots[theirs]
            if len(spot.modules) == 1 and not spot.swapped:
                made = {spot.modules[0]: tensors_of}
            else:
                made = apart(f"{self.where}: {said[theirs]}", tensors_of, spot, [shapes[m][0] for m in spot.modules])
            if twice := next((module for module in made if module in parts), None):
                others = next(said[other] for other in found if twice in spots[other].modules)
                raise ConfigError(
                    f"{self.where}: {others} and {said[theirs]} are both of {twice}; leave one of them out"
                )
            parts |= made
        return parts, unknown

    def _spot(self, name: str, spots: Collection[str], flat: Mapping[str, str]) -> str | None:
        if name in spots:
            return name
        for prefix in _FLAT:
            if name.startswith(prefix) and name.removeprefix(prefix) in flat:
                return flat[name.removeprefix(prefix)]
        for prefix in (f"{self.component}.", f"{self.main}.", *_PREFIXES):
            if name.startswith(prefix):
                return self._spot(name.removeprefix(prefix), spots, flat)
        return None

    def _bare(self, name: str) -> str:
        """Return the name of a module that is not known here without what tools write before names."""
        for prefix in (*_FLAT, f"{self.component}.", f"{self.main}.", *_PREFIXES):
            if name.startswith(prefix):
                return self._bare(name.removeprefix(prefix))
        return name.replace(".", "_")

    def _check(self, parts: Parts, told: PeftSettings) -> None:
        """Refuse matrices that are not there, or do not fit the layer they are for, or the settings."""
        modules = dict(self.network.named_modules())
        scaled = next((name for name, part in parts.items() if "magnitude" in part), None)
        for name, part in parts.items():
            if lacking := [side for side in ("A", "B") if side not in part]:
                raise ConfigError(f"{self.where}: the adapter of {name} lacks its matrix {' and '.join(lacking)}")
            shape = shape_of(modules[name])
            assert shape is not None
            a, b = part["A"], part["B"]
            thin = [1] * (len(shape) - 2)  # what is left of a kernel in the second matrix
            fits = (
                (*b.shape[:1], *a.shape[1:]) == shape and list(b.shape[1:]) == [*a.shape[:1], *thin] and a.numel() > 0
            )
            if not fits:
                raise ConfigError(
                    f"{self.where} is an adapter of another network than this {type(self.network).__name__}: for "
                    f"{name} it has matrices of shapes {list(a.shape)} and {list(b.shape)}, the layer has {list(shape)}"
                )
            if (rank := told.rank(name)) not in (None, len(a)):
                raise told.wrong("r", rank, f"{len(a)}, the rank of the matrices of {name}")
            if (scaled is not None) != ("magnitude" in part):
                raise ConfigError(
                    f"{self.where} has magnitudes (DoRA) of {scaled} and none of {name}, where PEFT has all or none"
                )
            if "magnitude" in part:
                found = part["magnitude"]
                if found.numel() != len(b):
                    raise ConfigError(
                        f"{self.where}: the magnitudes (DoRA) of {name} have shape {list(found.shape)}, the layer has "
                        f"{len(b)} rows"
                    )
                part["magnitude"] = _magnitude(found, len(shape))


def _magnitude(found: Tensor, dimensions: int) -> Tensor:
    """Return magnitudes as PEFT has them: `[n]` of a linear layer's n rows, `[1, n, 1, 1]` of a convolution's."""
    return found.flatten() if dimensions == 2 else found.reshape(1, -1, *[1] * (dimensions - 2))


def _alpha(name: str, part: Mapping[str, Tensor], told: PeftSettings) -> float:
    """Return the alpha of a module: a tensor beside the matrices, or what the settings say, or the rank."""
    if "alpha" in part:
        alpha = float(part["alpha"])
        told.check_alpha(name, "lora_alpha", alpha)
        return alpha
    given = told.alpha(name, "lora_alpha")
    return float(len(part["A"])) if given is None else given
