"""Hashes of what a run is made from: equal wherever it is, different where anything that is trained on differs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig

from alignment.checkpoints.contents import adapters_digests, pipeline_digest, prompts_digest
from alignment.data.prompts import read_prompts
from alignment.policy.networks.adapter_kinds import Adapter
from alignment.policy.networks.loading import no_progress_bars
from alignment.policy.networks.weights import Brought
from tests.support.toy import labelled


def loaded(folder: Path) -> FluxPipeline:
    with no_progress_bars():
        return FluxPipeline.from_pretrained(folder)


def test_a_pipeline_is_the_same_wherever_it_is(flux_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(flux_folder, tmp_path / "elsewhere")
    assert pipeline_digest(loaded(flux_folder)) == pipeline_digest(loaded(tmp_path / "elsewhere"))


def change_the_decoder(pipe: Any) -> None:
    pipe.vae.decoder.conv_out.weight.data += 1e-3


def change_the_encoder(pipe: Any) -> None:
    next(pipe.text_encoder.parameters()).data *= 1.001


def change_one_bias(pipe: Any) -> None:
    pipe.transformer.proj_out.bias.data[0] += 1e-3


def change_the_scheduler(pipe: Any) -> None:
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=7.0)


@pytest.mark.parametrize("change", [change_the_decoder, change_the_encoder, change_one_bias, change_the_scheduler])
def test_any_component_that_differs_tells(flux: FluxPipeline, change: Callable[[Any], None]) -> None:
    before = pipeline_digest(flux)
    change(flux)
    assert pipeline_digest(flux) != before


def test_storage_in_another_precision_of_equal_numbers_is_the_same_content(flux: FluxPipeline) -> None:
    flux.to(torch.bfloat16)
    before = pipeline_digest(flux)
    flux.to(torch.float32)
    assert pipeline_digest(flux) == before


def test_prompts_and_the_samples_beside_them(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        digests.append(prompts_digest(read_prompts(labelled(tmp_path / name, count=4), "keep", media=("media",))))
    assert digests[0] == digests[1]
    file = tmp_path / "other" / "labelled.jsonl"
    for old, new in (("true", "false"), ("labelled/1.png", "labelled/0.png"), ("prompt 2", "prompt two")):
        text = file.read_text()
        file.write_text(text.replace(old, new, 1))
        assert prompts_digest(read_prompts(str(file), "keep", media=("media",))) != digests[0]
        file.write_text(text)


def test_adapters_by_their_numbers_and_weights() -> None:
    def digest(scale: float = 1.0, alpha: int = 2, number: float = 1.0, start: bool = False) -> dict[str, str]:
        matrices = {"to_q.lora_A.weight": torch.full((2, 4), number), "to_q.lora_B.weight": torch.ones(4, 2)}
        adapter = {"transformer": Adapter("here", matrices, LoraConfig(r=2, lora_alpha=alpha))}
        return adapters_digests(Brought(start=adapter) if start else Brought(frozen=[(adapter, scale)]))

    assert digest() == digest()
    assert len({str(digest(**other)) for other in ({}, {"scale": 0.5}, {"alpha": 3}, {"number": 2.0})}) == 4
    assert (list(digest()), list(digest(start=True))) == (["policy.adapters"], ["policy.lora.start"])
    assert adapters_digests(Brought()) == {}
