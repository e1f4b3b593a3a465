"""What a plan says that a process holds is what processes hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.config.load import load
from alignment.preflight.plan import plan
from alignment.preflight.plan.gpus import gpu
from tests.support.runs import prepared
from tests.support.several import together

CASES = {
    "adapters of an odd rank, one copy": ("grpo", "policy.lora.rank=3"),
    "all weights, two copies": ("nft",),
    "some weights": ("nft", r"policy.trainable=['attn']"),
}


@pytest.fixture(scope="module")
def work(flux_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("counted"), flux_folder)


@pytest.mark.multi
@pytest.mark.slow(20)
def test_a_plan_counts_the_tensors_of_each_process_to_the_byte(work: Path) -> None:
    common = ("steps=1", "batch.updates=1", "parallel.shard=2")
    lines = [" ".join([f"{work / kind}.yaml", *more, *common]) for kind, *more in CASES.values()]
    output = work / "counts.json"
    together(2, "tests.equivalence.sharded_counts", str(output), *lines)
    for (kind, *more), (first, second) in zip(CASES.values(), json.loads(output.read_text()), strict=True):
        planned = plan.plan(load(work / f"{kind}.yaml", [*more, *common]), plan.Setup(gpu("h100"), gpus=2))
        assert first == {name: planned.memory["update"][name] for name in first}
        assert all(second[name] <= bytes_here for name, bytes_here in first.items())  # the last rows are filled up
