"""Compiled networks: what is compiled, how often, and where there is nothing to do it with."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from alignment.config.refusals import rollouts
from alignment.errors import ConfigError
from alignment.objectives.forward_process.nft import NFT
from alignment.policy.networks.compiling.compilations import COLD, COMPILATIONS
from alignment.policy.networks.compiling.compiler import compile_network, running_eagerly
from alignment.policy.networks.spec import PolicySpec
from alignment.sources.on_policy import OnPolicy
from tests.support.toy import REWARD, ToyNetwork, toy_run

TRACED = "eager"
"""torch's backend that traces and guards as the others do, and compiles nothing: seconds where others take minutes."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).relu()


class Stack(ModelMixin, ConfigMixin):
    """A network that says which of its blocks repeat."""

    _repeated_blocks: ClassVar[list[str]] = ["Block"]

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@torch.no_grad()
def test_blocks_are_compiled_once_a_kind_and_for_any_number_of_rows() -> None:
    network, x = Stack(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    written = {rows: network(x[:rows]) for rows in (5, 2, 3, 4)}
    compile_network(network, "blocks", TRACED)
    COMPILATIONS.of_step(0)
    assert torch.equal(network(x), written[5])
    first = COMPILATIONS.of_step(0)
    assert first["compile/graphs"] == 1
    assert first["seconds/compile"] > 0
    for rows, answer in written.items():
        assert torch.equal(network(x[:rows]), answer)
    with running_eagerly():
        assert torch.equal(network(x), written[5])
    assert COMPILATIONS.of_step(COLD)["compile/graphs"] == 0


def test_a_graph_serves_several_backward_passes() -> None:
    network = Stack()
    compile_network(network, "blocks", "aot_eager")  # compiles backward passes, too, into what eager runs
    loss = network(torch.ones(2, 4)).square().sum()
    one, other = (torch.autograd.grad(loss, list(network.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_compiled_late_is_told() -> None:
    layer = nn.Linear(2, 2)
    compile_network(layer, True, TRACED)
    COMPILATIONS.of_step(0)
    layer(torch.zeros(3, 2))
    with pytest.warns(UserWarning, match=f"step {COLD} compiled 1 graphs anew, .* shapes change from step to step"):
        assert COMPILATIONS.of_step(COLD)["compile/graphs"] == 1


def test_a_network_whose_blocks_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy.compile: .* which blocks of a ToyNetwork repeat; use true"):
        compile_network(ToyNetwork(), "blocks", TRACED)


def test_nothing_to_compile_with_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toy_run(tmp_path, OnPolicy(2, REWARD), NFT(), 1, policy=PolicySpec("nowhere", compile="blocks"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    ((key, says),) = rollouts.problems(run)
    assert key == "policy.compile"
    assert "there is none: install g++" in says
