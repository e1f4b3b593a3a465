"""How near a run comes to what its GPUs can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.config.load import checked, load
from alignment.preflight.plan.gpus import GPUS, product
from alignment.preflight.plan.plan import Setup, plan
from alignment.preflight.plan.utilisation import least_seconds, seconds_at_peak
from alignment.training import session
from tests.support.runs import prepared

NAMES = {
    "NVIDIA B200": "b200", "NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100",
    "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA A100-PCIE-40GB": "a100-40", "NVIDIA L40S": "l40s", "NVIDIA L4": "l4",
    "NVIDIA GeForce RTX 5090": "5090", "NVIDIA GeForce RTX 4090": "4090", "NVIDIA GeForce RTX 3090": "3090",
    "NVIDIA GeForce GTX 1080": None, "NVIDIA A10G": None, "AMD Instinct MI300X": None,
}  # fmt: skip
"""What drivers call GPUs."""


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_is_known_by_its_drivers_name(name: str) -> None:
    found = product(name)
    assert (None if found is None else found.name) == NAMES[name]


def test_every_gpu_has_such_a_name() -> None:
    assert {one.name for one in GPUS} == {name for name in NAMES.values() if name is not None}


def test_the_least_time_is_that_of_the_plan_at_the_peak(flux_folder: Path, tmp_path: Path) -> None:
    run = load(str(prepared(tmp_path / "work", flux_folder) / "grpo.yaml"))
    h100 = product("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    flops = sum(plan(run, Setup(h100)).flops.values())
    assert seconds_at_peak(run, "NVIDIA H100 80GB HBM3", 1) == pytest.approx(flops / h100.full)
    assert seconds_at_peak(run, "NVIDIA GeForce GTX 1080", 1) is None


def test_there_is_none_where_there_is_no_plan_or_no_gpu(flux_folder: Path, tmp_path: Path) -> None:
    work = prepared(tmp_path / "work", flux_folder)
    (work / "draft.yaml").write_text(
        "extends: common.yaml\n"
        "source: {type: prompts_only, group_size: 1, reward: {type: colour}}\n"
        "objective: {type: draft}\n"
    )
    assert seconds_at_peak(load(str(work / "draft.yaml")), "NVIDIA H100 80GB HBM3", 1) is None
    assert least_seconds(load(str(work / "grpo.yaml"), ["device=cpu"]), 1) is None


def test_it_is_recorded_in_each_step(flux_folder: Path, tmp_path: Path) -> None:
    work = prepared(tmp_path / "work", flux_folder)
    run = checked(str(work / "grpo.yaml"), ["evaluation.prompts=null", "steps=1"])
    session.train(run, least_seconds=0.25)
    [line] = map(json.loads, (work / "runs" / "run" / "metrics.jsonl").read_text().splitlines())
    assert line["mfu"] * line["seconds/total"] == pytest.approx(0.25)
