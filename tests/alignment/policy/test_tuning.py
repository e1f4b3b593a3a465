"""Which weights are trained."""

import pytest
import torch

from alignment.errors import ConfigError
from alignment.policy.networks.spec import Lora, PolicySpec
from alignment.policy.networks.tuning import adapter_layers, add_lora, lora_targets, merged, unfreeze
from alignment.policy.networks.weights import Weights
from tests.support.tiny import tiny_flux, tiny_sd15


def test_targets_are_linear_layers_inside_blocks_that_do_not_modulate():
    for denoiser in (tiny_flux().transformer, tiny_sd15().unet):
        targets = lora_targets(denoiser)
        modules = dict(denoiser.named_modules())
        assert len(targets) > 5
        assert all(isinstance(modules[name], torch.nn.Linear) for name in targets)
        assert all("block" in name for name in targets)
        assert not any("time_emb" in name or "norm" in name.split(".")[-2] for name in targets)


def test_adapters_are_float32_start_at_nothing_and_depend_on_the_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = [add_lora(tiny_flux().transformer.bfloat16(), Lora(2), seed) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.dtype == torch.float32 for p in found[0].values())
    seconds = [name for name in found[0] if "lora_B" in name]
    assert all((found[0][name] == 0).all() for name in seconds)
    firsts = [name for name in found[0] if "lora_A" in name]
    assert len(firsts) == len(seconds) == len(found[0]) / 2
    assert all(torch.equal(found[0][name], found[1][name]) for name in firsts)
    assert not any(torch.equal(found[0][name], found[2][name]) for name in firsts)


def test_targets_by_name_and_alpha():
    denoiser = tiny_flux().transformer
    trained = add_lora(denoiser, Lora(2, alpha=8, targets=("to_q",)), 0)
    assert trained
    assert all(".to_q." in name for name in trained)
    layer = denoiser.transformer_blocks[0].attn.to_q
    assert layer.scaling == {"default": 4.0}


def test_targets_that_bind_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"policy.lora.targets \['to_z'\] bind no module of Flux.*to_q"):
        add_lora(tiny_flux().transformer, Lora(2, targets=("to_z",)), 0)


class CallsByName(torch.nn.Module):
    """A network that hands a linear layer its input by name, as diffusers' motion modules do."""

    def __init__(self):
        super().__init__()
        self.proj_in, self.to_q = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.to_q(self.proj_in(input=x))


def test_an_adapter_that_is_called_by_name_is_named():
    network, x = CallsByName(), torch.randn(2, 4)
    add_lora(network, Lora(2, targets=("proj_in", "to_q")), 0)
    with pytest.raises(ConfigError, match=r"calls proj_in with a named input.*policy\.lora\.targets=\[to_q\]"):
        network(x)
    network = CallsByName()
    add_lora(network, Lora(2, targets=("to_q",)), 0)
    network(x)


def test_a_denoiser_is_trained_whole_or_in_part():
    denoiser = tiny_flux().transformer.bfloat16()
    part = unfreeze(denoiser, (r"attn\.to_q", r"proj_out\.bias"))
    assert all("attn.to_q" in name or "proj_out.bias" in name for name in part)
    assert all(p.requires_grad == (name in part) for name, p in denoiser.named_parameters())
    assert len(unfreeze(denoiser, None)) == len(list(denoiser.parameters()))
    with pytest.raises(ConfigError, match=r"policy.trainable \['nothing'\] matches no parameter"):
        unfreeze(denoiser, ("nothing",))


def test_weights_come_back_bit_for_bit_after_a_merge_that_failed():
    denoiser = tiny_sd15().unet
    with torch.no_grad():
        for parameter in add_lora(denoiser, Lora(2), 0).values():
            parameter.normal_()
    before = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
    changed = []

    def fail_inside():
        with merged(adapter_layers(denoiser)):
            changed.extend(name for name, p in denoiser.named_parameters() if not torch.equal(p, before[name]))
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        fail_inside()
    assert changed == [name for name in before if name.endswith("base_layer.weight")]
    assert all(torch.equal(p, before[name]) for name, p in denoiser.named_parameters())


def test_trained_weights_are_float32_whatever_the_others_are():
    denoiser = tiny_flux().transformer.bfloat16()
    weights = Weights({"transformer": denoiser}, PolicySpec("x", trainable=(r"attn\.to_q",)), seed=0)
    assert weights.trainable
    for name, parameter in denoiser.named_parameters():
        assert parameter.dtype == (torch.float32 if name in weights.trainable else torch.bfloat16)
        assert parameter is weights.trainable.get(name, parameter)
