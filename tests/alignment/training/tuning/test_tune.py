"""Searching numbers of a config: what is refused, what is tried, and that a study that was stopped goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

import alignment.training.tuning.study as studies
from alignment.cli import main as cli
from alignment.errors import ConfigError
from alignment.training.tuning.page import Tried, write_page
from alignment.training.tuning.ranges import Range, read_ranges
from tests.support.toy import near_the_right_mode, saved

CONFIG = {"optimizer": {"learning_rate": 1e-3, "betas": None}, "batch": {"updates": 2}, "device": "cpu"}
REWARD = f"{near_the_right_mode.__module__}:{near_the_right_mode.__name__}"


def test_ranges_are_whole_where_the_field_is_and_by_magnitude_where_they_are_wide() -> None:
    rate, updates = read_ranges(["optimizer.learning_rate=1e-4:1e-2", "batch.updates=1:4"], CONFIG)
    assert rate == Range("optimizer.learning_rate", 1e-4, 1e-2, whole=False)
    assert (rate.by_magnitude, updates.by_magnitude, updates.whole) == (True, False, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one --search"),
        (["optimizer.learnin_rate=1:2"], r"no field optimizer\.learnin_rate\. Did you mean 'learning_rate'\?"),
        (["optimizer.betas=0:1"], r"optimizer\.betas is None, not a number"),
        (["device=0:1"], "device is 'cpu', not a number"),
        (["batch.updates=1:2.5"], "give two whole numbers"),
        (["batch.updates=4:1"], "LOW has to be below HIGH"),
        (["batch.updates=4"], r"expected FIELD=LOW:HIGH"),
        (["batch.updates=1:2", "batch.updates=1:4"], "is searched already"),
        (["steps=1:4"], "steps is not searched: how long a trial runs"),
        (["seed=0:9"], "seed is not searched: a seed that comes out well is luck"),
        (["evaluation.images_per_prompt=1:9"], r"evaluation\.images_per_prompt is not searched"),
    ],
)
def test_what_cannot_be_searched_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_ranges(words, CONFIG)


def test_the_page_has_the_longest_runs_first_and_of_these_the_best(tmp_path: Path) -> None:
    tried = [Tried(0, {"a": 1.0}, 4, 0.9), Tried(1, {"a": 2.0}, 8, 0.5), Tried(2, {"a": 3.0}, 8, 0.6)]
    write_page(tmp_path / "tune.md", "strict", [*tried, Tried(3, {"a": 9.0}, 0, None, "diverged")])
    lines = [line for line in (tmp_path / "tune.md").read_text().splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines] == ["trial", "2", "1", "0", "3"]
    assert lines[-1].endswith("| diverged |")
    assert "visalign train CONFIG a=3.0" in (tmp_path / "tune.md").read_text()


def test_a_study_goes_on_where_it_was_and_belongs_to_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "toy", updates=1)
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(
        "name: toy\nsteps: 4\ndevice: cpu\npolicy: {pipeline: toy, call: {num_inference_steps: 10}}\n"
        "data: {prompts: toy/prompts.txt}\nsource: {type: on_policy, prompts: 2, group_size: 2}\n"
        "objective: {type: nft}\noptimizer: {learning_rate: 1e-3}\nbatch: {microbatch: 4}\n"
        "evaluation: {images_per_prompt: 2}\n"
    )
    reward = f"source.reward={{type: function, call: '{REWARD}'}}"
    words = ["tune", "toy.yaml", reward, "--prompts", "toy/prompts.txt", "--halvings", "1", "--search"]
    trained: list[str] = []
    train = studies.session.train

    def counted(run: studies.Run) -> None:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(run.name)
        train(run)

    monkeypatch.setattr(studies.session, "train", counted)
    assert cli.run([*words, "optimizer.learning_rate=1e-4:1e-1", "--trials", "4"]) == cli.INTERRUPTED
    monkeypatch.setattr(studies.session, "train", lambda run: (trained.append(run.name), train(run)))
    assert cli.run([*words, "optimizer.learning_rate=1e-4:1e-1", "--trials", "4"]) == 0
    assert len(trained) == len(set(trained))  # nothing that was finished ran again
    rows = [line for line in Path("runs/toy-tune/tune.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 4
    assert {line.split("|")[3].strip() for line in rows} == {"2", "4"}  # the worse ones ended early
    assert cli.run([*words, "optimizer.learning_rate=1e-3:1e-1", "--trials", "4"]) == 2
    assert cli.run([*words, "optimizer.learning_rate=1e-4:1e-1", "--trials", "4", "--metric", "strict"]) == 2
    assert capsys.readouterr().err.count("is of a study of another config, other fields or another metric") == 2
