from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from alignment.errors import DataError
from alignment.reports.compare import Curve, average, group, main, read_curve
from alignment.reports.statistics import Interval, over_runs
from tests.support.synthetic_run import write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        write_run(folder / f"branch-seed{seed}", steps=41, seed=seed)
    write_run(folder / "nft", steps=41, gain=0.1)
    return folder


def points(*means: float) -> tuple[Interval, ...]:
    return tuple(Interval(mean, math.nan, math.nan, 1) for mean in means)


def test_seeds_of_one_recipe_belong_together(runs):
    found = group([str(path) for path in sorted(runs.iterdir())], "strict")
    assert {label: len(curves) for label, curves in found.items()} == {"branch": 3, "nft": 1}
    labelled = group([f"a={runs / 'branch-seed0'}", f"b = c={runs / 'branch-seed1'}"], "strict")
    assert list(labelled) == ["a", "b = c"]


def test_a_curve_is_the_evaluations(runs):
    curve = read_curve(runs / "nft", "strict")
    assert curve.steps == (0, 20, 40, 41)
    assert curve.at == (0.0, 20.0, 40.0, 41.0)
    assert all(point.low < point.mean < point.high for point in curve.points)


def test_a_metric_of_the_steps_is_a_curve_too(runs):
    curve = read_curve(runs / "nft", "reward/mean")
    assert curve.steps == tuple(range(41))
    assert math.isnan(curve.points[0].low)


def test_seconds_are_those_of_training(runs):
    curve = read_curve(runs / "nft", "strict", "seconds")
    assert curve.at[0] == 0.0
    assert list(curve.at) == sorted(curve.at)
    assert curve.at[-1] == pytest.approx(sum(s.mean for s in read_curve(runs / "nft", "seconds/total").points))


def test_an_average_is_over_the_steps_that_all_have():
    first = Curve((0, 5, 10), (0.0, 1.0, 2.0), points(0.1, 0.2, 0.3))
    second = Curve((0, 10, 20), (0.0, 4.0, 8.0), points(0.3, 0.5, 0.9))
    mean = average([first, second])
    assert mean.steps == (0, 10)
    assert mean.at == (0.0, 3.0)
    assert mean.points == (over_runs([0.1, 0.3]), over_runs([0.3, 0.5]))
    assert average([first]) == first


def test_runs_that_never_met_are_refused():
    with pytest.raises(DataError, match="different steps"):
        average([Curve((0,), (0.0,), points(0.1)), Curve((1,), (1.0,), points(0.1))])


@pytest.mark.parametrize("axis", ["steps", "seconds"])
def test_it_draws(runs, tmp_path, axis, capsys):
    output = tmp_path / "curves.png"
    arguments = [*map(str, sorted(runs.iterdir())), "--metric", "strict", "--axis", axis, "--output", str(output)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(output)
    with Image.open(output) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{runs}/nowhere"], "no run folder"),
        (["{runs}/nft", "{runs}/nft"], "given twice"),
        (["{runs}/nft", "--metric", "strikt"], "no metric 'strikt'; its evaluations have: graded, strict"),
        (["{runs}/nft", "--output", "curves.gif"], "expected a name that ends in"),
        (["{runs}/nft", "--output", "{runs}/no/curves.png"], "cannot write"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(runs, tmp_path, monkeypatch, arguments, said, capsys):
    monkeypatch.chdir(tmp_path)
    given = [argument.format(runs=runs) for argument in arguments]
    assert main(given if "--metric" in given else [*given, "--metric", "strict"]) != 0
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
