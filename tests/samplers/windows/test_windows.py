"""What each window does that others do not."""

from itertools import pairwise

import pytest
import torch

from samplers.dynamics.flow_sde import FlowSDE
from samplers.paths.grid import flow_grid
from samplers.step import mean_std
from samplers.windows.all import All
from samplers.windows.base import Choice
from samplers.windows.branch import Branch
from samplers.windows.fraction import Fraction
from samplers.windows.random import Random
from samplers.windows.sliding import Sliding


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def chosen(window, rounds, steps=1, chunk=0):
    return [window.choose(rounds, step, chunk, generator(step)).trained for step in range(steps)]


def test_all_steps_but_the_last():
    assert All().choose(4, 0, 0, generator()) == Choice((0, 1, 2), (0, 1, 2))
    assert All(drop_last=False).choose(1, 0, 0, generator()) == Choice((0,), (0,))


def test_a_fraction_trains_the_integer_part_of_all_steps_taken():
    choice = Fraction(0.6).choose(16, 0, 0, generator())
    assert choice.stochastic == tuple(range(15))
    assert len(choice.trained) == int(15 * 0.6)
    assert len({Fraction(0.6).choose(16, 0, 0, generator(seed)).trained for seed in range(10)}) > 1


def test_random_steps_among_some():
    assert set(sum(chosen(Random(size=1, among=(1, 3)), 8, steps=40), ())) == {1, 3}


def test_random_neighbours():
    found = chosen(Random(size=3, contiguous=True), 8, steps=60)
    assert all(b - a == 1 for steps in found for a, b in pairwise(steps))
    assert {steps[0] for steps in found} == set(range(5))


def test_a_sliding_window_moves_and_starts_again():
    found = chosen(Sliding(size=2, stride=2, every=3), 7, steps=12)
    assert found == [(0, 1)] * 3 + [(2, 3)] * 3 + [(4, 5)] * 3 + [(0, 1)] * 3


def test_a_stride_that_does_not_divide_still_reaches_the_end():
    assert chosen(Sliding(size=2, stride=3, every=1), 8, steps=4) == [(0, 1), (3, 4), (5, 6), (0, 1)]


def test_calls_of_a_step_take_the_branches_in_turn_and_the_next_step_rotates_them():
    window = Branch((0, 1, 1, 2))
    turns = [[window.choose(6, step, chunk, generator()).trained[0] for chunk in range(4)] for step in range(2)]
    assert turns == [[0, 1, 1, 2], [1, 1, 2, 0]]
    assert window.choose(6, 0, 0, generator()).branch


@pytest.mark.parametrize(
    "window",
    [Branch((0, 1, 1, 3)), Sliding(size=2, stride=2, every=1), Fraction(0.5), Random(1), Random(2, contiguous=True)],
    ids=lambda window: type(window).__name__,
)
def test_steps_that_weigh_as_much_as_they_have_noise_weigh_one_on_average(window):
    """TempFlow-GRPO's weights: std over the mean std of what comes up, as often as it does."""
    dynamics, grid = FlowSDE(0.7), flow_grid(torch.linspace(1, 0, 8))
    deterministic = isinstance(window, (Branch, Sliding))
    weights = []
    for step in range(60 if deterministic else 4000):
        choice = window.choose(7, step, 0, generator(step))
        mean = mean_std(dynamics.step(grid, k, k + 1) for k in choice.eligible)
        weights += [dynamics.step(grid, k, k + 1).std.item() / mean for k in choice.trained]
    assert sum(weights) / len(weights) == pytest.approx(1, rel=1e-5 if deterministic else 0.03)
    assert max(weights) > 1.2 > 0.8 > min(weights)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Branch((3,)), "branching at step 3 needs more than 4 steps"),
        (Fraction(0.1), r"int\(3 steps x fraction 0.1\) = 0"),
        (Random(size=4), "a window of 4 steps cannot be drawn from 3 eligible ones"),
        (Random(size=1, among=(7,)), r"cannot be drawn from 0 eligible ones \[\]"),
        (Sliding(size=4), "a window of 4 steps does not fit into 3"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(window, message):
    with pytest.raises(ValueError, match=message):
        window.choose(4, 0, 0, generator())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Branch(()),
        lambda: Branch((-1,)),
        lambda: Fraction(0.0),
        lambda: Fraction(1.1),
        lambda: Random(size=0),
        lambda: Sliding(stride=0),
    ],
)
def test_an_impossible_window_is_refused(build):
    with pytest.raises(ValueError, match="must"):
        build()
