"""`visalign doctor --pipeline`: a healthy pipeline passes; a user's mistakes are named before they cost anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from diffusers import DPMSolverMultistepScheduler, LEditsPPPipelineStableDiffusion

from alignment.cli import main as cli
from alignment.preflight.doctor import laws_of_the_pipeline
from alignment.preflight.doctor.laws_of_the_pipeline import CHECKS
from tests.pipelines.zoo import images
from tests.support.tiny import FLUX_CALL

CALL = [f"{name}={value}" for name, value in FLUX_CALL.items()]
Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Said:
    def run(*words: object) -> tuple[int, str, str]:
        code = cli.run(["doctor", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at sampling alone, where the test is about the command and not about the checks."""
    monkeypatch.setattr(laws_of_the_pipeline, "CHECKS", (laws_of_the_pipeline.own_sampler, laws_of_the_pipeline.pixels))


@pytest.mark.slow
def test_a_pipeline_needs_no_config(flux_folder: Path, doctor: Said) -> None:
    code, said, _ = doctor("--pipeline", flux_folder, "--call", *CALL)
    assert code == 0
    assert all(check.__name__.replace("_", " ") in said for check in CHECKS)
    assert "all laws hold" in said


@pytest.mark.usefixtures("few")
def test_arguments_may_stand_in_a_file(flux_folder: Path, tmp_path: Path, doctor: Said) -> None:
    (tmp_path / "call.yaml").write_text(yaml.safe_dump({**FLUX_CALL, "width": 64}))
    code, said, _ = doctor("--json", "--pipeline", flux_folder, "--call", tmp_path / "call.yaml", "width=32")
    assert code == 0
    found = {finding["law"]: finding for finding in json.loads(said)["findings"]}
    assert "1 x 3 x 16 x 32" in found["pixels"]["says"]


def with_scheduler(folder: Path, to: Path, change: dict[str, object]) -> Path:
    shutil.copytree(folder, to)
    for name, key in (("scheduler/scheduler_config.json", "_class_name"), ("model_index.json", None)):
        values = json.loads((to / name).read_text())
        if key is None:
            values["scheduler"] = ["diffusers", change["_class_name"]]
        else:
            values |= change
        (to / name).write_text(json.dumps(values))
    return to


WRONG: dict[str, tuple[list[str], str]] = {
    "neither": (["--call", "height"], "--call height: neither name=value nor a YAML file"),
    "endless": (["--call", "/dev/zero"], "/dev/zero: more than 262,144 characters"),
    "unknown": (
        ["--call", *CALL, "heigth=16"],
        "policy.call.heigth: FluxPipeline takes no such argument. Did you mean",
    ),
    "ours": (["--call", *CALL, "num_images_per_prompt=2"], "policy.call.num_images_per_prompt cannot be set"),
    "steps": (["--call", *CALL, "num_inference_steps=0"], "policy.call.num_inference_steps: got 0"),
    "height": (["--call", *CALL, "height=-1"], "policy.call.height: got -1, expected a whole number of at least 1"),
    "width": (["--call", *CALL, "width=1.5"], "policy.call.width: got 1.5, expected a whole number of at least 1"),
    "length": (["--call", *CALL, "max_sequence_length=5000"], "policy.call: FluxPipeline cannot be called with these"),
    "target": (
        ["--call", *CALL, "--json", "policy.lora.targets=[nothing]"],
        "bind no module of FluxTransformer2DModel",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_users_mistake_is_named(case: str, flux_folder: Path, doctor: Said) -> None:
    words, message = WRONG[case]
    code, said, error = doctor("--pipeline", flux_folder, *words)
    assert (code, said) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_call_without_a_pipeline_is_a_mistake(doctor: Said) -> None:
    code, _, error = doctor("run.yaml", "--call", "height=16")
    assert code == 2
    assert "--call is for --pipeline" in error


def test_a_folder_that_is_no_pipeline(tmp_path: Path, doctor: Said) -> None:
    code, _, error = doctor("--pipeline", tmp_path, "--call", *CALL)
    assert code == 2
    assert "no model_index.json" in error


def test_a_pipeline_that_has_to_be_prepared_by_hand(tmp_path: Path, doctor: Said) -> None:
    """LEDITS++ edits what was inverted before, and takes no number of steps."""
    parts = dict(images.stable_diffusion().pipe.components)
    del parts["image_encoder"]
    parts["scheduler"] = DPMSolverMultistepScheduler(**images.BETAS, steps_offset=1)
    LEditsPPPipelineStableDiffusion(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    code, _, error = doctor("--pipeline", tmp_path)
    assert code == 2
    assert "LEditsPPPipelineStableDiffusion cannot be called with these arguments: You need to invert" in error
    assert len(error.splitlines()) == 1
