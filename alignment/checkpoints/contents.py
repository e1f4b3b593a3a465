"""What a run is made from, by content and not by place: prompts, samples, base weights. Kept in every checkpoint.

A path is not enough: the file behind it may have changed, and a folder that has moved is the same folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.data.batches import inputs_of
from alignment.data.prompts import Prompts
from alignment.policy.networks.adapter_kinds import Adapter, alpha_of
from alignment.policy.networks.weights import Brought

_SAMPLED = 256
"""Numbers read of each weight: reading all of a large pipeline would take longer than loading it."""
_UNTOLD = ("transformers_version", "dtype", "torch_dtype", "quantization_config")
"""Settings of a network about how it is loaded, not what it is; so are those with a leading underscore."""


def prompts_digest(prompts: Prompts) -> str:
    """Return a hash of prompts in their order: texts, inputs, and the samples and labels beside them.

    Covers the content of every picture and clip, through the hash that was taken when it was read; not their names, nor
    columns of the data file that nothing reads.
    """
    digest = hashlib.sha256()
    for index, text in enumerate(prompts.texts):
        inputs = {name: v if isinstance(v, str) else v.digest for name, v in inputs_of(text).items()}
        example = prompts.examples[index] if prompts.examples else None
        beside = None if example is None else [[sample.digest for sample in example.media], example.label]
        digest.update(json.dumps([str(text), inputs, beside], sort_keys=True).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


def pipeline_digest(pipe: Any) -> str:
    """Return a hash of a pipeline as it was loaded, before anything is trained.

    Covers the classes and settings of all components, the vocabularies of tokenizers, and of every weight of every
    network its name, shape and `_SAMPLED` numbers spread over it. A change of a few single numbers between those is not
    seen; another checkpoint, a merge, a fine-tuning or a damaged tensor is.
    """
    digest = hashlib.sha256(type(pipe).__name__.encode())
    for name, component in sorted(pipe.components.items()):
        digest.update(f"{name} {type(component).__name__}".encode())
        if isinstance(component, PreTrainedTokenizerBase):
            digest.update(json.dumps(component.get_vocab(), sort_keys=True).encode(errors="surrogatepass"))
        elif hasattr(component, "config"):
            digest.update(json.dumps(_settings(component.config), sort_keys=True, default=str).encode())
        if isinstance(component, nn.Module):
            for key, weight in component.named_parameters():
                digest.update(f"{key} {list(weight.shape)}".encode() + _sample(weight))
    return digest.hexdigest()[:16]


def adapters_digests(brought: Brought) -> dict[str, str]:
    """Return hashes of the adapters that a run began with, by the config's key: all of their numbers, and scales."""
    found = {}
    if brought.frozen or brought.samplers:
        stacks = (brought.frozen, brought.samplers)
        digests = [[[weight, _adapters_digest(adapters)] for adapters, weight in stack] for stack in stacks]
        found["policy.adapters"] = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    if brought.start is not None:
        found["policy.lora.start"] = _adapters_digest(brought.start)
    return found


def _adapters_digest(adapters: Mapping[str, Adapter]) -> str:
    digest = hashlib.sha256()
    for component, adapter in sorted(adapters.items()):
        scales = [[module, alpha_of(adapter, module)] for module in sorted(adapter.modules)]
        digest.update(json.dumps([component, scales], sort_keys=True).encode())
        for name, weight in sorted(adapter.weights.items()):
            digest.update(f"{name} {list(weight.shape)}".encode() + weight.to(torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def _settings(config: Any) -> Any:
    settings = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(settings, Mapping):
        return settings
    return {
        str(key): _settings(value)
        for key, value in settings.items()
        if not str(key).startswith("_") and str(key) not in _UNTOLD
    }


def _sample(weight: Tensor) -> bytes:
    plain = weight.detach()
    if hasattr(type(plain), "__tensor_flatten__"):  # rounded weights, which are several tensors and cannot be indexed
        plain = plain.dequantize()
    flat = plain.flatten()
    return flat[:: max(len(flat) // _SAMPLED, 1)].to(torch.float64).cpu().numpy().tobytes()
