"""Measuring reward models, end to end, on drawn scenes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from alignment.cli.main import run
from evals.bench import measure, worst
from evals.benchmarks.shapes import Shapes
from evals.probes import PROBES
from evals.scoring import BatchScorer, Request
from evals.words import named
from reward_models.combinators.function import Function
from reward_models.measures.colour import Colour
from reward_models.measures.jpeg import Jpeg
from reward_models.verifiers.shapes import Shapes as Verifier

CPU = torch.device("cpu")
COMPARISONS = Shapes(pairs=36).read()
CHANGED = 0.01  # of a level in [0, 1]; every probe does something
KNOWS, GUESSES = 0.95, 0.75  # accuracy of the verifier; most that a reward blind to captions gets here


def brighter_is_better(pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return pixels.mean(dim=(1, 2, 3, 4))


def sometimes_unable(pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return torch.where(pixels[:, 0, 0, 0, 0] > 0.1, torch.nan, pixels.mean(dim=(1, 2, 3, 4)))


def test_the_verifier_knows_and_colour_guesses() -> None:
    knows, guesses = (measure(BatchScorer(model, CPU), COMPARISONS, probed=8) for model in (Verifier(), Colour()))
    assert knows.agreement.accuracy.mean >= KNOWS
    assert guesses.agreement.accuracy.mean <= GUESSES
    assert knows.reads is not None
    assert knows.reads.mean > 0.9
    assert guesses.reads is not None
    assert guesses.reads.mean == 0.5
    assert worst(guesses, COMPARISONS, 5)


def test_a_reward_that_artefacts_raise_is_found_out() -> None:
    bright = Function(f"{__name__}:brighter_is_better")
    found = measure(BatchScorer(bright, CPU), COMPARISONS, probed=8)
    assert found.hackability is not None
    assert found.hackability.mean > 0.3
    assert found.probes["overexposure"].rises.mean > 0.9
    verifier = measure(BatchScorer(Verifier(), CPU), COMPARISONS, probed=8)
    assert verifier.hackability is not None
    assert verifier.hackability.mean < 0.2


def test_what_has_no_score_is_counted_and_left_out() -> None:
    found = measure(BatchScorer(Function(f"{__name__}:sometimes_unable"), CPU), COMPARISONS, probed=4)
    assert 0 < found.agreement.unscored < len(COMPARISONS)
    assert found.agreement.accuracy.n < sum(c.human != 0 for c in COMPARISONS)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_a_probe_changes_a_picture_and_keeps_its_shape(probe) -> None:
    for frames, height, width in ((1, 32, 32), (3, 40, 24)):
        x = torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))
        y = probe.alter(x)
        assert y.shape == x.shape
        assert 0 <= y.min() <= y.max() <= 1
        assert (y - x).abs().max() > CHANGED


def test_scores_do_not_depend_on_the_batch_size() -> None:
    requests = [Request(c.prompt, c.first) for c in COMPARISONS]
    assert BatchScorer(Jpeg(), CPU, batch_size=1).scores(requests) == BatchScorer(Jpeg(), CPU, batch_size=7).scores(
        requests
    )


def test_the_command_writes_table_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rewards", "bench", "shapes", "strict=1", "colour", "--with", "pairs=24", "--probed", "4"]
    assert run([*words, "--output", str(tmp_path)]) == 0
    assert "report.html" in capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert list(found["rewards"]) == ["shapes strict=1", "colour"]
    assert len(found["comparisons"]) == 24
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:)", page), "the page fetches nothing"
    assert "Where colour disagrees most" in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "which rewards"),
        (["strict=1", "shapes"], "before any reward"),
        (["shapes", "shapes"], "twice"),
        (["shapez"], "Did you mean 'shapes'"),
        (["shapes", "--on", "shape"], "no benchmark called 'shape'"),
        (["shapes", "strict=2"], "strict is a weight"),
        (["shapes", "--probed", "-1"], "--probed"),
        (["shapes", "--on", "hpdv2", "--with", "folder=nowhere"], "test.json"),
    ],
)
def test_bad_words_are_one_message(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rewards", "bench", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_rewards_are_told_apart_by_their_fields() -> None:
    assert named(["shapes", "strict=1", "shapes"]) == {
        "shapes strict=1": ("shapes", ["strict=1"]),
        "shapes": ("shapes", []),
    }


def test_list_names_every_reward_and_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rewards", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"shapes", "jpeg", "weighted"} <= {entry["name"] for entry in found["rewards"]}
    assert {"shapes", "hpdv2", "pairs"} <= {entry["name"] for entry in found["benchmarks"]}
