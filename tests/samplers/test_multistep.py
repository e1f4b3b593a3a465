"""The second-order solver and the strides it takes."""

import math

import pytest
import torch

from samplers.dynamics.ode import ODE
from samplers.multistep import SecondOrder, strides
from tests.support.gaussian import Gaussian, shifted

START = 0.8


def solve(target, grid, solver, x=START):
    state = torch.tensor([x])
    for i in range(len(grid)):
        slope, offset = target.velocity(grid.sigma(i))
        state = solver.step(grid, i, i + 1, state, slope * state + offset)
    return state.item()


def test_errors_fall_with_the_square_of_the_step():
    target = Gaussian()
    exact = target.flow(START, 0.95, 0.05)
    errors = {}
    for n, printed in ((8, 2.41e-2), (16, 8.0e-3), (32, 1.97e-3), (64, 4.67e-4), (128, 1.13e-4)):
        errors[n] = abs(solve(target, shifted(n, first=0.95, last=0.05), SecondOrder()) - exact)
        assert errors[n] == pytest.approx(printed, rel=2e-2)
    assert math.log2(errors[32] / errors[128]) / 2 >= 1.9


def test_the_whole_path_ends_nearer_than_euler():
    target = Gaussian()
    exact = target.flow(START, 1.0, 0.0)
    for n, printed in ((10, -7.5e-2), (16, -2.6e-2), (28, -6e-4)):
        assert solve(target, shifted(n, 3.0), SecondOrder()) - exact == pytest.approx(printed, rel=0.05)


def test_a_target_without_spread_is_reached_exactly():
    assert solve(Gaussian(v0=0.0), shifted(5), SecondOrder()) == pytest.approx(1.0, abs=1e-6)


def test_its_first_step_is_that_of_the_ode_and_its_last_the_clean_prediction():
    grid = shifted(6, first=0.9)
    x, v = torch.randn(2, 3, 4)
    solver = SecondOrder()
    torch.testing.assert_close(solver.step(grid, 0, 1, x, v), ODE().step(grid, 0, 1).mean(x, v))
    torch.testing.assert_close(solver.step(grid, 5, 6, x, v), x - grid.sigma(5) * v)


def test_a_clean_prediction_that_stays_makes_it_the_ode():
    grid = shifted(6)
    x, clean = torch.randn(2, 3, 4)
    solver = SecondOrder()
    for i in range(6):
        v = (x - clean) / grid.sigma(i)
        expected = ODE().step(grid, i, i + 1).mean(x, v)
        x = solver.step(grid, i, i + 1, x, v)
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


def test_every_trajectory_needs_a_memory_of_its_own():
    grid = shifted(6)
    x, v, other = torch.randn(3, 3, 4)
    used = SecondOrder()
    used.step(grid, 1, 2, x, other)
    assert not torch.equal(used.step(grid, 2, 3, x, v), SecondOrder().step(grid, 2, 3, x, v))


@pytest.mark.parametrize(("first", "rounds", "calls"), [(3, 10, 7), (3, 10, 2), (0, 9, 4), (8, 10, 1), (10, 10, 3)])
def test_strides_cover_what_is_left(first, rounds, calls):
    pairs = strides(first, rounds, calls)
    assert len(pairs) == (calls if first < rounds else 0)
    covered = [k for i, j in pairs for k in range(i, j)]
    assert covered == list(range(first, rounds))
    lengths = [j - i for i, j in pairs] or [0]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("calls", [0, 8])
def test_strides_that_cannot_cover_are_refused(calls):
    with pytest.raises(ValueError, match=f"7 rounds cannot be covered by {calls}"):
        strides(3, 10, calls)
