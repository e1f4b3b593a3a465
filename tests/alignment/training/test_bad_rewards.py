"""Rewards that fail or cannot be learned from: one message names the user's function, and no step is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.alignment.cli.test_bad_input import SMALL, judged_by, raises, refused
from tests.support.runs import left_by, prepared_for_the_toy, train


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    return prepared_for_the_toy(tmp_path / "work", toy_folder)


asked = 0


def fails_later(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    global asked
    asked += 1
    return raises(pixels, prompts) if asked == 3 else pixels.mean((1, 2, 3, 4))


def unscored(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(prompts),), torch.nan)


def one_unscored(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    scores = pixels.mean((1, 2, 3, 4))
    scores[0] = torch.nan
    return scores


def infinite(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(prompts),), torch.inf)


def too_few(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.zeros(len(prompts) - 1)


def constant(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.full((len(prompts),), 0.5)


def without_numbers(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.zeros(len(prompts), device="meta")


def without_numbers_in_a_list(pixels: Tensor, prompts: Sequence[str]) -> list[Tensor]:
    return list(without_numbers(pixels, prompts))


def leaves(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    raise SystemExit(7)


def cancels(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    raise asyncio.CancelledError


def interrupts(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    raise KeyboardInterrupt


def doubles(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return pixels.mean((1, 2, 3, 4))


def in_a_column(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    return pixels.mean((1, 2, 3, 4))[:, None]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (raises, "raised ZeroDivisionError: the judge is out"),
        (unscored, ":unscored left 100% of the samples of step 0 without a score"),
        (infinite, "returned inf for sample 0"),
        (too_few, "returned 5 numbers for 6 samples"),
        (without_numbers, ":without_numbers returned a tensor without numbers"),
        (without_numbers_in_a_list, ":without_numbers_in_a_list returned tensor("),
        (leaves, "raised SystemExit: 7"),
        (cancels, "raised CancelledError"),
        (interrupts, "raised KeyboardInterrupt"),
        (in_a_column, "returned an array of shape [6, 1], expected [6]"),
        (constant, ":constant gave all 6 samples of the first step the same score 0.5"),
    ],
)
def test_rewards_that_cannot_be_learned_from(
    folder: Path, capfd: pytest.CaptureFixture[str], function: Callable[..., object], says: str
) -> None:
    told = refused(folder, capfd, judged_by(function), clean=False)
    assert says in told
    assert not list((folder / "runs" / "run").glob("checkpoint-*"))


def test_a_reward_that_cannot_be_imported(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "no_such_module" in refused(folder, capfd, "source.reward={type: function, call: 'no_such_module:f'}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "raised SystemExit: 0"),
        ("raise KeyError('weights')", "raised KeyError: 'weights'"),
    ],
)
@pytest.mark.parametrize("dry", [("--dry-run",), ()], ids=["dry", "train"])
def test_a_reward_whose_module_breaks_down(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    says: str,
    dry: tuple[str, ...],
) -> None:
    (folder / "breaks_down.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    told = refused(folder, capfd, "source.reward={type: function, call: 'breaks_down:f'}", *dry)
    assert f"source.reward: function breaks_down:f: importing breaks_down {says}" in told


def test_a_dry_run_imports_the_reward(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = refused(folder, capfd, "source.reward={type: function, call: 'no_such_module:f'}", "--dry-run")
    assert "source.reward: function no_such_module:f" in told


def test_a_reward_that_fails_later_loses_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    global asked
    asked = 0
    assert train(folder, "grpo", "name=whole", "evaluation.prompts=null") == 0
    failing = ("evaluation.prompts=null", judged_by(fails_later))
    assert train(folder, "grpo", *failing, "output.save_every=0") == 2
    said = capfd.readouterr().err
    assert "the judge is out" in said
    assert "checkpoint-2 is saved; continue with --resume latest" in said
    assert [path.name for path in (folder / "runs" / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert train(folder, "grpo", *failing, "--resume", "latest") == 0
    assert left_by(folder / "runs" / "run") == left_by(folder / "runs" / "whole")


def test_what_a_reward_sets_for_the_whole_process_is_put_back(folder: Path) -> None:
    with pytest.warns(UserWarning, match=":doubles set the default dtype of the process to torch.float64"):
        assert train(folder, "grpo", *SMALL, judged_by(doubles)) == 0
    assert torch.get_default_dtype() == torch.float32


def test_a_sample_without_a_score_is_counted_and_left_out(folder: Path) -> None:
    assert train(folder, "grpo", *SMALL, judged_by(one_unscored)) == 0
    line = json.loads((folder / "runs" / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert line["reward/unscored_fraction"] == pytest.approx(1 / 6)
    assert "nonfinite" not in line
