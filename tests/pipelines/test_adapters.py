"""Adapters of every pipeline of the zoo, written in each way of naming modules and read back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from alignment.checkpoints.adapter_files import trained_adapters, write_adapter
from alignment.policy.networks.adapter_places import PEFT_CONFIG, PEFT_FILE, file_name
from alignment.policy.networks.adapters import read_adapters
from alignment.policy.networks.loading import experts
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.networks.tuning import ADAPTER, adapter_layers, add_lora
from alignment.policy.networks.weights import Weights
from tests.pipelines.zoo import Member

ODD = Lora(2, alpha=3)
"""An alpha that is not the rank, and not twice or half of it: folded into a matrix it would be seen."""


@pytest.fixture(scope="session")
def trained(member: Member) -> Weights:
    """Return copies of a member's trained networks with adapters that were moved."""
    weights = Weights(copy.deepcopy(experts(member.pipe)), PolicySpec("somewhere", lora=ODD), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights.trainable.values():
            weight += torch.randn(weight.shape, generator=generator)
    return weights


def of(network: Any) -> dict[str, Tensor]:
    return get_peft_model_state_dict(network, adapter_name=ADAPTER)


def scales(network: Any) -> list[float]:
    return [layer.scaling[ADAPTER] for layer in adapter_layers(network)]


def by_diffusers(folder: Path, weights: Weights) -> None:
    main = next(iter(weights.experts))
    for name, adapter in trained_adapters(weights).items():
        write_adapter(adapter, folder / file_name(name, main), main)


def by_peft(folder: Path, weights: Weights) -> None:
    network = next(iter(weights.experts.values()))
    save_file({f"base_model.model.{name}": z.contiguous() for name, z in of(network).items()}, folder / PEFT_FILE)
    told = network.peft_config[ADAPTER].to_dict()
    written = {key: sorted(value) if isinstance(value, set) else value for key, value in told.items()}
    (folder / PEFT_CONFIG).write_text(json.dumps(written))


def by_kohya(folder: Path, weights: Weights) -> None:
    network = next(iter(weights.experts.values()))
    made = convert_state_dict_to_kohya({f"unet.{name}": z.contiguous() for name, z in of(network).items()})
    alphas = {name: torch.tensor(float(ODD.alpha or 0)) for name in made if name.endswith(".alpha")}
    save_file(made | alphas, folder / "style.safetensors")


STYLES = (by_diffusers, by_peft, by_kohya)


def test_an_adapter_comes_back_bit_by_bit(member: Member, trained: Weights, tmp_path: Path) -> None:
    networks = experts(member.pipe)
    for write in STYLES:
        folder = tmp_path / write.__name__
        folder.mkdir()
        write(folder, trained)
        found = read_adapters("policy.lora.start", str(folder), member.pipe, networks)
        assert list(found) == list(networks)[: None if write is by_diffusers else 1]
        for name, adapter in found.items():
            wanted = of(trained.experts[name])
            assert adapter.weights.keys() == wanted.keys()
            assert all(torch.equal(weight, adapter.weights[key]) for key, weight in wanted.items())
            network = copy.deepcopy(networks[name])
            add_lora(network, Lora(start="somewhere"), 0, adapter)
            scales = [
                [layer.scaling[ADAPTER] for layer in adapter_layers(each)] for each in (trained.experts[name], network)
            ]
            assert scales[0] == scales[1]
