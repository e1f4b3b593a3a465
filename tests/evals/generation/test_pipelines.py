"""Pipelines, adapters and checkpoints, compared: each picture is what plain diffusers makes of its weights and seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from alignment.checkpoints import manifest
from alignment.checkpoints.export import Order, export
from alignment.cli.main import run
from alignment.data.random_streams import Draw
from alignment.errors import ConfigError
from alignment.policy.networks.adapter_places import CARD_DATA
from alignment.policy.networks.spec import FrozenAdapter
from evals.generation.subjects import copies_under, parse
from tests.support.tiny import FLUX_CALL
from tests.support.trained import Trained, quiet, trained

LEVEL = 1  # of 255: rows of one call and rows alone differ by rounding, which may fall on either side
CALL = [f"{name}={value}" for name, value in FLUX_CALL.items()]
PROMPTS = ("a cat", "a dog", "a cow")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    folder = tmp_path_factory.mktemp("subjects")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return trained(folder, "flux", lora=True), folder


def evaluate(folder: Path, *words: object, output: str = "out") -> int:
    suite = ("--on", "prompts", f"file={folder / 'prompts.txt'}", "--pictures", 2, "--batch-size", 4)
    stages = ("--reward", "colour", "--only", "generate", "score", "compare")
    return run(["eval", *map(str, (*words, *suite, *stages, "--output", folder / output))])


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def by_diffusers(pipe: FluxPipeline, item: int, sample: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(Draw(0).key("evaluation", item, sample))
    return np.asarray(pipe(PROMPTS[item], generator=generator, **FLUX_CALL).images[0]).astype(int)


def test_pictures_are_those_of_plain_diffusers(made: tuple[Trained, Path]) -> None:
    """A pipeline, a checkpoint by itself, and the checkpoint as an adapter of the pipeline."""
    (one, folder), samples = made, made[1] / "out" / "samples"
    subjects = (one.base, one.checkpoint, f"same={one.base}+{one.checkpoint}")
    assert evaluate(folder, *subjects, "--call", *CALL) == 0
    asked = ((0, 0), (2, 1))
    pipe = quiet(FluxPipeline.from_pretrained(one.base))
    plain = [by_diffusers(pipe, *which) for which in asked]
    pipe.load_lora_weights(one.checkpoint)
    tuned = [by_diffusers(pipe, *which) for which in asked]
    assert np.abs(plain[0] - tuned[0]).max() > 10 * LEVEL
    for subject, wanted in {"base": plain, "run checkpoint-7": tuned, "same": tuned}.items():
        for (item, sample), picture in zip(asked, wanted, strict=True):
            own = levels(samples / subject / "prompts" / f"{item:05d}-{sample}.png")
            assert np.abs(own - picture).max() <= LEVEL, subject
    found = json.loads((folder / "out" / "eval.json").read_text(encoding="utf-8"))
    assert [subject["kind"] for subject in found["subjects"].values()] == ["pipeline", "checkpoint", "pipeline"]
    # What was made here is a folder of pictures to others.
    assert evaluate(folder, f"again={samples / 'same' / 'prompts'}", output="again") == 0


def test_an_export_that_is_a_pipeline_is_compared_as_one(made: tuple[Trained, Path]) -> None:
    one, folder = made
    export(one.checkpoint, folder / "whole", Order("merged"))
    assert parse([str(folder / "whole")])[0].kind == "pipeline"
    assert parse([str(one.checkpoint)])[0].kind == "checkpoint"
    export(one.checkpoint, folder / "alone", Order("diffusers"))
    with pytest.raises(ConfigError, match=r"holds exported adapters; give the pipeline that they are for: PIPELINE\+"):
        parse([str(folder / "alone")])[0].spec()


def test_what_a_checkpoint_was_trained_on_is_read_from_its_own_copies(tmp_path: Path) -> None:
    for k in range(2):
        (tmp_path / f"frozen_adapter_{k}.safetensors").touch()
    told = (FrozenAdapter("a", 0.5), FrozenAdapter("fast", 1.0, "sampling"), FrozenAdapter("b", 0.3))
    assert copies_under(tmp_path, told) == [
        FrozenAdapter(str(tmp_path / "frozen_adapter_0.safetensors"), 0.5),
        told[1],
        FrozenAdapter(str(tmp_path / "frozen_adapter_1.safetensors"), 0.3),
    ]


def test_a_checkpoint_is_called_as_it_was_trained(made: tuple[Trained, Path], capsys: pytest.CaptureFixture) -> None:
    one, folder = made
    assert evaluate(folder, one.checkpoint, "--dry-run", output="other") == 0
    assert "6 pictures, of which 6 are to be made; 24 denoising steps" in capsys.readouterr().err


def test_checkpoints_of_other_precisions_are_compared_at_one(
    made: tuple[Trained, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one, folder = made
    other = tmp_path / "other" / "checkpoint-7"
    shutil.copytree(one.checkpoint, other)
    card = json.loads((other / CARD_DATA).read_text(encoding="utf-8"))
    card["config"]["policy"]["autocast"] = "float16"
    (other / CARD_DATA).write_text(json.dumps(card), encoding="utf-8")
    (other / manifest.NAME).unlink()
    sealed = manifest.inspect(other, step=7, sequence=1, world_size=1, config=card["config"])
    (other / manifest.NAME).write_text(sealed.dumps(), encoding="utf-8")
    both = (one.checkpoint, f"other={other}")
    assert evaluate(folder, *both, "--dry-run", output="precise") == 2
    assert "other autocast (None and float16)" in capsys.readouterr().err
    assert evaluate(folder, *both, "--dtype", "float32", "--dry-run", output="precise") == 0


def test_a_sweep_is_one_adapter_at_six_strengths(made: tuple[Trained, Path], capsys: pytest.CaptureFixture) -> None:
    one, folder = made
    assert evaluate(folder, one.checkpoint, "--sweep", "--dry-run", output="other") == 0
    said = capsys.readouterr().err
    assert "run checkpoint-7@0, run checkpoint-7@0.25, run checkpoint-7@0.5" in said
    assert "36 pictures" in said
    assert evaluate(folder, one.base, "--sweep", "--dry-run", output="other") == 2
    assert "has not just one adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["BASE", "BASE"], "are both called base"),
        (["BASE@0.5"], "only adapters have a weight"),
        (["BASE+BASE@half"], "'half' behind @ is not a number"),
        (["reference=BASE"], "no subject can be called reference"),
        (["a/../b=BASE"], "NAME of letters and digits"),
    ],
)
def test_words_that_name_no_subject_are_refused(made: tuple[Trained, Path], words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        parse([word.replace("BASE", str(made[0].base)) for word in words])
