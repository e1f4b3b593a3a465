"""Dynamics and windows that a scheduler cannot have are refused from its configuration, before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from diffusers import DiffusionPipeline

from alignment.cli import main as cli
from alignment.config import checks
from alignment.config.load import load
from alignment.config.schedule import read_scheduler
from alignment.errors import ConfigError
from samplers.dynamics.base import Dynamics
from samplers.dynamics.dance_sde import DanceSDE
from samplers.errors import SamplingError
from samplers.paths.grid import Grid
from samplers.step import Step
from tests.alignment.cli.test_bad_input import refused
from tests.support.runs import prepared

LAST_STEP = ("source.dynamics={type: coefficient_preserving}", "source.window={type: all, drop_last: false}")
NO_NOISE = "source.dynamics: step 3 is to be trained but its std is 0 under CoefficientPreserving"


@pytest.fixture
def folder(flux_folder: Path, tmp_path: Path) -> Path:
    return prepared(tmp_path / "work", flux_folder)


@pytest.mark.parametrize("dry", [("--dry-run",), ()], ids=["dry", "train"])
def test_dynamics_of_flows_on_a_pipeline_of_another_family(
    folder: Path, sd15_folder: Path, capfd: pytest.CaptureFixture[str], dry: tuple[str, ...]
) -> None:
    told = refused(folder, capfd, f"policy.pipeline={sd15_folder}", *dry)
    assert "source.dynamics: FlowSDE is defined on rectified flows alone" in told
    assert "DDIMScheduler steps another forward process; use ddim or coefficient_preserving" in told


@pytest.mark.parametrize("dry", [("--dry-run",), ()], ids=["dry", "train"])
def test_a_last_step_without_noise_in_the_window(
    folder: Path, capfd: pytest.CaptureFixture[str], dry: tuple[str, ...]
) -> None:
    assert NO_NOISE in refused(folder, capfd, *LAST_STEP, *dry)


def test_a_last_step_that_ends_at_a_little_noise_may_be_trained(folder: Path, sd15_folder: Path) -> None:
    """As Stable Diffusion's own does, with `set_alpha_to_one: false`."""
    common = folder / "common.yaml"
    common.write_text(common.read_text().replace(", max_sequence_length: 24", ""))  # which it does not take
    on_sd15 = [f"policy.pipeline={sd15_folder}", *LAST_STEP]
    assert cli.run(["train", str(folder / "grpo.yaml"), *on_sd15, "--dry-run"]) == 0


def test_steps_that_the_pipeline_counts_itself_are_looked_at_once_it_is_loaded(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Without num_inference_steps the tiny pipeline takes FLUX's own 28 steps.
    own = (folder / "common.yaml").read_text().replace("num_inference_steps: 4, ", "")
    (folder / "common.yaml").write_text(own)
    assert "source.dynamics: step 27 is to be trained" in refused(folder, capfd, *LAST_STEP)


def test_a_scheduler_that_is_on_the_hub_is_asked_once_it_is_loaded(sd15: DiffusionPipeline, folder: Path) -> None:
    assert read_scheduler("someone/something") is None
    run = load(folder / "grpo.yaml")
    checks.check_scheduler(run, None, 4)
    with pytest.raises(ConfigError, match=r"source\.dynamics: FlowSDE .*DDIMScheduler steps another forward process"):
        checks.check_scheduler(run, sd15.scheduler, None)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"scheduler": [null, null]}',
        '{"scheduler": ["diffusers", "NoSuch"]}',
        '{"scheduler": ["diffusers", "KarrasVeScheduler"]}',
    ],
)
def test_a_damaged_folder_has_no_scheduler_yet(tmp_path: Path, text: str) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text(text)
    assert read_scheduler(str(tmp_path)) is None


@dataclass(frozen=True)
class Picky(Dynamics):
    """Not defined where the tiny pipeline's own call goes, which its scheduler alone does not know."""

    marginal: ClassVar[bool] = True

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, grid: Grid, i: int, j: int) -> Step:
        if abs(grid.sigma(1) - 0.75) < 1e-6:
            raise SamplingError("it does not go to three quarters of the noise")
        return DanceSDE().step(grid, i, j)


def test_what_dynamics_say_on_the_way_is_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = f"source.dynamics={{type: '{Picky.__module__}:Picky'}}"
    told = refused(folder, capfd, own, "source.window={type: all}", clean=False)
    assert told == "visalign: source.dynamics: it does not go to three quarters of the noise"
