"""A frozen denoiser in floating-point numbers of 8 bits, by diffusers' layerwise casting."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from alignment.errors import ConfigError
from alignment.policy.networks.tuning import lora_targets

FLOAT8 = torch.float8_e4m3fn


def store_as_float8(network: nn.Module, compute: torch.dtype) -> None:
    """Keep the frozen weights of the linear layers in a network's blocks in 8 bits; they are `compute` while they run.

    Those that modulate by time stay as they are. While something learns, what a layer computed with stays until its
    backward pass, unless the block recomputes it.

    Raises:
        ConfigError: If there is a weight beyond the largest number of 8 bits.
    """
    from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook

    for name in lora_targets(network):
        layer: Any = network.get_submodule(name)
        if layer.weight.requires_grad:  # an adapter
            continue
        if not layer.weight.is_meta and (most := layer.weight.abs().max().item()) > torch.finfo(FLOAT8).max:
            raise ConfigError(
                f"policy.quantize: float8 holds numbers up to {torch.finfo(FLOAT8).max:g}, and {name} has {most:g}; "
                "use 8bit"
            )
        apply_layerwise_casting_hook(layer, FLOAT8, compute, non_blocking=False)
