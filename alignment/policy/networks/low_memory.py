"""Making a pipeline fit: a frozen denoiser in fewer bits, encoders and decoder out of the way, decoding in parts.

Everything here is diffusers' own; this file chooses backends and refuses what a device cannot do.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alignment.errors import ConfigError, EnvironmentProblem
from alignment.policy.networks.spec import PolicySpec

if TYPE_CHECKING:
    from diffusers import PipelineQuantizationConfig


def quantization(spec: PolicySpec, networks: Sequence[str], device: torch.device) -> PipelineQuantizationConfig | None:
    """Return how the pipeline's denoising networks are quantised, or None if they are not.

    Eight bits are weights rounded by torchao, on any device; four bits are NF4 of bitsandbytes, which needs CUDA.

    Args:
        spec: The policy.
        networks: Names of the components.
        device: Where they will run.

    Raises:
        EnvironmentProblem: If the backend is not installed, or cannot run on `device`.
    """
    if spec.quantize is None or spec.quantize == "float8":
        return None
    from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig

    if spec.quantize == "8bit":
        _need("torchao", spec.quantize)
        torchao = importlib.import_module("torchao.quantization")
        config: Any = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    else:
        if device.type != "cuda":
            raise EnvironmentProblem(
                f"policy.quantize: 4bit runs on CUDA only, and this run is on {device.type}; use 8bit"
            )
        _need("bitsandbytes", spec.quantize)
        compute = spec.precision or getattr(torch, spec.dtype)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    mapping: dict[str, Any] = dict.fromkeys(networks, config)
    return PipelineQuantizationConfig(quant_mapping=mapping)


def offload(pipe: Any, stay: Sequence[str], device: torch.device) -> None:
    """Keep encoders and decoder in main memory; each of their layers visits `device` while it runs.

    Args:
        pipe: The pipeline, not yet moved to `device`.
        stay: Components that are not offloaded.
        device: Where everything computes.
    """
    pipe.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        exclude_modules=list(stay),
    )


def decode_in_parts(pipe: Any, how: str) -> None:
    """Let the decoder work sample by sample ("sliced"), and on overlapping tiles of each ("tiled").

    Raises:
        ConfigError: If the pipeline's decoder cannot.
    """
    decoder = pipe.components.get("vae")
    for part in ("slicing", "tiling") if how == "tiled" else ("slicing",) if how == "sliced" else ():
        enable = f"enable_{part}"
        if not isinstance(decoder, nn.Module) or not hasattr(decoder, enable):
            raise ConfigError(
                f"policy.decode: {type(decoder).__name__} of {type(pipe).__name__} cannot decode in parts ({part}); "
                "use whole"
            )
        getattr(decoder, enable)()


def _need(package: str, bits: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise EnvironmentProblem(
            f"policy.quantize: {bits} is done by {package}, which is not installed; run `pip install {package}`"
        )
