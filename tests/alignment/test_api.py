"""The way from Python: names that are there and cost nothing, runs made in code, and what a run returns."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from torch import Tensor

import alignment
from alignment import api, load_run, train
from alignment.config.listing import kinds
from alignment.config.load import as_written
from alignment.config.registry import find, known
from alignment.config.run import Data, Optimizer, PolicySpec, Run
from alignment.errors import ConfigError
from reward_models.base import RewardError
from reward_models.combinators.function import Function
from reward_models.measures.jpeg import Jpeg
from tests.support import runs
from tests.support.failures import STEPS, SURROGATE

ROOT = Path(__file__).parents[2]


def brightness(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return pixels.mean((1, 2, 3, 4))


RUN = Run("x", PolicySpec("assets/tiny_flux"), Data("prompts.txt"), STEPS, SURROGATE, steps=1)


def test_importing_the_package_imports_nothing_else() -> None:
    told = "import sys, alignment; print({'torch', 'yaml', 'alignment.api'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_type_of_a_config_is_there_by_its_class() -> None:
    for kind in kinds(Run).values():
        for short, cls in known(kind).items():
            if cls in dir(alignment):
                assert getattr(alignment, cls) is find(kind, short)
            else:  # a word of two kinds
                with pytest.raises(AttributeError, match="import it from"):
                    getattr(alignment, cls)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        alignment.Nothing  # noqa: B018


def test_what_type_checkers_are_told_is_there() -> None:
    stub = (ROOT / "alignment" / "__init__.pyi").read_text(encoding="utf-8")
    told = {line.split(" as ")[1] for line in stub.splitlines() if line.startswith("from alignment.api")}
    assert told == set(api.__all__)


def test_the_function_stays_where_the_launchers_module_is_imported() -> None:
    importlib.import_module("alignment.train")
    assert alignment.train is train


def test_a_run_made_in_code_leaves_the_folder_of_one_from_a_config(flux_folder: Path, tmp_path: Path) -> None:
    folder = runs.prepared(tmp_path / "work", flux_folder)
    assert runs.train(folder, "grpo", "name=shell", "steps=2") == 0
    run = load_run(folder / "grpo.yaml", ["name=python", "steps=2"])
    source = replace(run.source, reward=Function(call=runs.brightness))
    result = train(replace(run, source=source, policy=replace(run.policy, pipeline=flux_folder)))
    shell = api.Result(folder / "runs" / "shell")

    def names(at: Path) -> set[str]:
        return {str(path.relative_to(at)) for path in at.rglob("*") if path.name != ".lock"}

    assert names(result.folder) == names(shell.folder)
    assert [line["reward/mean"] for line in result.metrics] == [line["reward/mean"] for line in shell.metrics]
    assert len(result.metrics) == result.summary["steps"] == 2
    assert result.checkpoint == result.folder / "checkpoint-2"
    assert result.checkpoint.is_dir()
    assert result.report.is_file()
    assert {name: step for name, (step, _) in result.evaluations.items()} == {"base": 0, "final": 2}
    assert str(result.checkpoint) in str(result)
    written = load_run(result.folder / "config.resolved.yaml")
    assert written.source.reward == Function("tests.support.runs:brightness")
    assert train(replace(written, steps=3), resume="latest").summary["steps"] == 3


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"steps": "many"}, "steps: got the text 'many', expected a whole number"),
        ({"optimizer": Optimizer(betas=(0.9,))}, "optimizer.betas: got a list of 1, expected a list of 2"),
        (
            {"policy": PolicySpec("a/b", call={"image": torch.zeros(1)})},
            "policy.call.image: got a Tensor, which",
        ),
        ({"seed": 0.5}, "seed: got the number 0.5, expected a whole number"),
        ({"name": "a/b"}, "name: got 'a/b'; it names a folder"),
    ],
)
def test_what_no_config_can_hold_is_refused_in_one_line(changed: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        as_written(replace(RUN, **changed))
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_paths_and_lists_are_taken_as_what_yaml_has() -> None:
    run = replace(RUN, data=Data(Path("a") / "b.txt"), optimizer=Optimizer(betas=[0.5, 0.75]))
    assert as_written(run).data.prompts == "a/b.txt"
    assert as_written(run).optimizer.betas == (0.5, 0.75)


def test_a_function_is_kept_by_its_name() -> None:
    reward = Function(call=brightness)
    assert reward == Function(f"{__name__}:brightness")
    assert reward.load(device=torch.device("cpu")).function is brightness
    for nameless in (lambda pixels, prompts: pixels, brightness.__call__, 3):
        with pytest.raises(RewardError, match=r"^function.*(give a function|nothing can import it)"):
            Function(call=nameless)


def test_a_class_made_inside_a_function_is_refused() -> None:
    @dataclass(frozen=True)
    class Inside(Jpeg):
        differentiable: ClassVar[bool] = False

    with pytest.raises(ConfigError, match="made inside a function cannot be named in a config"):
        as_written(replace(RUN, source=dataclasses.replace(RUN.source, reward=Inside())))


@pytest.mark.slow
def test_the_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.a_run_in_python import main

    monkeypatch.chdir(ROOT)
    result = main(2, str(tmp_path))
    told = yaml.safe_load((result.folder / "config.resolved.yaml").read_text())
    assert told["source"]["reward"] == {"type": "function", "call": "examples.a_run_in_python:redness"}
    assert [line["step"] for line in result.metrics] == [0, 1]
    assert all(line["grad/norm"] > 0 for line in result.metrics)
