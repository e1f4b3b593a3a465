"""What is read before anything is loaded is accepted by every command that would train on it, or refused by all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image

from alignment.cli import main as cli
from alignment.config.load import load as load_run
from alignment.training.setup import read_held_out
from reward_models.base import Media, RewardError, RewardModel, Rewards
from tests.alignment.preflight.test_snr import RUN
from tests.support.toy import near_the_right_mode, saved

COMMANDS = {
    "dry run": ["train", "--dry-run"],
    "train": ["train", "steps=1", "evaluation.images_per_prompt=1"],
    "doctor": ["doctor"],
    "shuffle": ["doctor", "--shuffle", "steps=1"],
    "snr": ["doctor", "--snr", "steps=3"],
}
REFUSED = 2


@dataclass(frozen=True)
class Choosy(RewardModel):
    """Score what the toy's reward scores, but no cats."""

    differentiable: ClassVar[bool] = False

    def check(self, prompts: Sequence[str]) -> None:
        if any("cat" in prompt for prompt in prompts):
            raise RewardError("no cats")

    def load(self, *, device: torch.device) -> Choosy:
        return self

    def __call__(self, *, media: Media, prompts: Sequence[str]) -> Rewards:
        return Rewards(torch.as_tensor(near_the_right_mode(media.pixels, list(prompts))).float())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy"), updates=1)


def lines(path: Path, *records: Mapping[str, object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def said(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str]
) -> str | None:
    """Return the message with which the command refuses the run; None where it takes it."""
    (tmp_path / "run.yaml").write_text(RUN.format(folder=folder, out=tmp_path / "runs"), encoding="utf-8")
    name, *options = COMMANDS[command]
    code = cli.run([name, str(tmp_path / "run.yaml"), *options, "output.overwrite=true", *words])
    told = capsys.readouterr().err
    return told if code == REFUSED else None


CAPTIONS: list[dict[str, object]] = [{"caption": f"prompt {k}", "prompt": 5} for k in range(4)]
CHOOSY = f"source.reward={{type: '{__name__}:Choosy'}}"
NO_CAPTION = 'held.jsonl: line 1: not an object with a text under "caption"'
NO_PICTURE = "held.jsonl: line 1: image: there is no file"
CASES: dict[str, tuple[list[dict[str, object]], list[str], str | None]] = {
    "a column of another name": (CAPTIONS, ["data.columns={prompt: caption}"], None),
    "no such column": ([{"prompt": "a"}], ["data.columns={prompt: caption}"], NO_CAPTION),
    "a prompt that the reward cannot judge": ([{"prompt": "a cat"}], [CHOOSY], "held.jsonl: no cats"),
    "the same twice": ([{"prompt": "a"}, {"prompt": "a"}], [], "held.jsonl: line 2: repeats line 1"),
    "a picture that is not there": ([{"prompt": "a", "image": "a.png"}], [], NO_PICTURE),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", CASES)
def test_every_command_says_the_same_of_a_held_out_file(
    case: str, command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records, words, expected = CASES[case]
    held_out = lines(tmp_path / "held.jsonl", *records)
    prompts = lines(tmp_path / "prompts.jsonl", *({"caption": f"p {k}", "prompt": f"p {k}"} for k in range(4)))
    words = [f"data.prompts={prompts}", f"evaluation.prompts={held_out}", *words]
    told = said(command, folder, tmp_path, capsys, words)
    if expected is None:
        assert told is None
    else:
        assert expected in str(told)


@pytest.mark.parametrize("command", ["dry run", "train", "doctor"])  # nothing is sampled here that could be shuffled
def test_columns_of_samples_to_learn_from_are_not_looked_for(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in range(4):
        Image.new("RGB", (1, 1), (60 * k, 9, 9)).save(tmp_path / f"{k}.png")
    samples = [{"prompt": f"p {k}", "winner": f"{k}.png", "liked": True} for k in range(4)]
    file = lines(tmp_path / "prompts.jsonl", *samples)
    strange = {"winner": "gone.png", "liked": "x"}
    held_out = lines(tmp_path / "held.jsonl", *({"prompt": f"p {k}", **strange} for k in range(4)))
    words = [
        f"data.prompts={file}", f"evaluation.prompts={held_out}", "data.columns={media: winner, label: liked}",
        "evaluation.reward={type: function, call: 'tests.support.toy:near_the_right_mode'}",
    ]  # fmt: skip
    text = RUN.format(folder=folder, out=tmp_path / "runs")
    head, tail = text[: text.index("source:")], text[text.index("device:") :]
    (tmp_path / "run.yaml").write_text(f"{head}source: {{type: offline, prompts: 2}}\nobjective: {{type: sft}}\n{tail}")
    name, *options = COMMANDS[command]
    assert cli.run([name, str(tmp_path / "run.yaml"), *options, *words]) != REFUSED, capsys.readouterr().err
    run = load_run(tmp_path / "run.yaml", words)
    found = read_held_out(run)
    assert found is not None
    assert all(type(text) is str for text in found.texts)


def test_nothing_is_held_out_where_nothing_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN.format(folder=folder, out=tmp_path / "runs"), encoding="utf-8")
    assert read_held_out(load_run(tmp_path / "run.yaml")) is None
