"""Adapters that somebody trained elsewhere, for the tests of those who bring some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from alignment.checkpoints.adapter_files import trained_adapters, write_adapter
from alignment.policy.networks.adapter_places import LORA_FILE
from alignment.policy.networks.loading import experts
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.networks.weights import Weights


def save(pipe: Any, folder: Path, lora: Lora) -> None:
    """Write adapters of a pipeline that were moved; the pipeline keeps them."""
    folder.mkdir(exist_ok=True)
    weights = Weights(experts(pipe), PolicySpec("somewhere", lora=lora), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights.trainable.values():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    for name, adapter in trained_adapters(weights).items():
        write_adapter(adapter, folder / LORA_FILE, name)
