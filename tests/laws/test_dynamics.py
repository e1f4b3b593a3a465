"""What every rule of a step keeps; a new file in `samplers/dynamics/` is tested without being named here."""

import math
from contextlib import nullcontext
from dataclasses import fields

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal, kl_divergence

from alignment.config import registry
from samplers import Step, read_grid
from samplers.dynamics.base import Dynamics
from samplers.dynamics.ode import ODE
from samplers.errors import SamplingError
from tests.support.gaussian import Gaussian, shifted

NAMES = tuple(registry.known(Dynamics))

ROUNDING = 1e-6
"""Coefficients are float32 numbers of order one."""
CONVERGED = 2e-3
"""Error of the variance after 1,000 steps; Euler's is 1.5e-3 on the coarsest grid."""
DENSITY = 1e-5
"""Two float32 formulas of a log density of order ten."""


def kind(name):
    return registry.find(Dynamics, name)


def quiet(cls):
    """Return the rule with all its noise turned off."""
    return cls(**dict.fromkeys(cls.noise, 0.0))


def variance_preserving(prediction="epsilon", steps=10):
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.register_to_config(prediction_type=prediction)
    scheduler.set_timesteps(steps)
    return read_grid(scheduler, scheduler.timesteps)


def grids(dynamics):
    """Yield grids the rule is defined on."""
    yield shifted(10)
    yield shifted(7, shift=3.0)
    yield shifted(10, first=0.999999)
    for prediction in ("epsilon", "v_prediction", "sample"):
        grid = variance_preserving(prediction)
        if not dynamics.needs_flow:
            yield grid


@pytest.fixture(params=NAMES)
def cls(request):
    return kind(request.param)


@pytest.fixture
def dynamics(cls):
    return cls()


def test_it_is_a_frozen_rule_with_defaults(cls, dynamics):
    assert isinstance(dynamics, Dynamics)
    assert cls.__dataclass_params__.frozen
    assert dynamics == cls()


def test_it_needs_a_flow_where_it_says_so_and_nowhere_else(cls):
    with pytest.raises(SamplingError, match="flow") if cls.needs_flow else nullcontext():
        cls().step(variance_preserving(), 0, 1)


def test_what_it_calls_noise_are_fields_of_its_own(cls):
    assert set(cls.noise) <= {field.name for field in fields(cls)}
    assert bool(cls.noise) == cls().stochastic


def test_coefficients_are_finite_numbers_and_noise_is_as_told(dynamics):
    for grid in grids(dynamics):
        steps = [dynamics.step(grid, i, i + 1) for i in range(len(grid))]
        for step in steps:
            assert step.coefficients.shape == (3,)
            assert step.coefficients.dtype == torch.float32
            assert step.coefficients.isfinite().all()
            assert step.std >= 0
        assert all(step.std > 0 for step in steps[:-1]) == dynamics.stochastic


def test_no_first_step_blows_up(dynamics):
    # Wan's grid starts at .999999: with g = a sqrt(t / (1 - t)) its first step would have a std of 131.
    for grid in grids(dynamics):
        assert dynamics.step(grid, 0, 1).std <= 1


def test_without_noise_it_is_the_ode(cls):
    for grid in grids(cls()):
        for i in range(len(grid)):
            step = quiet(cls).step(grid, i, i + 1)
            torch.testing.assert_close(
                step.coefficients, ODE().step(grid, i, i + 1).coefficients, atol=ROUNDING, rtol=ROUNDING
            )
    assert not quiet(cls).stochastic


@pytest.mark.parametrize("level", [-0.1, math.inf])
def test_noise_below_zero_or_without_end_is_refused(cls, level):
    for name in cls.noise:
        with pytest.raises(SamplingError, match=rf"\b{name}\b.*{level}"):
            cls(**{name: level})


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_mean_is_kept_and_the_variance_is_reached(dynamics, shift):
    mean, variance = Gaussian().result(dynamics, shifted(4000, shift))
    assert mean == pytest.approx(1.0, abs=1e-4)
    assert (abs(variance - 0.25) < CONVERGED) == dynamics.marginal


def test_more_steps_come_closer(dynamics):
    if dynamics.marginal:
        coarse, fine = (abs(Gaussian().result(dynamics, shifted(n, 3.0))[1] - 0.25) for n in (20, 500))
        assert fine < coarse


def test_a_long_step_ends_where_the_last_of_its_rounds_ends(dynamics):
    grid = shifted(8)
    halved = shifted(4)
    for i in range(4):
        torch.testing.assert_close(
            dynamics.step(grid, 2 * i, 2 * i + 2).coefficients, dynamics.step(halved, i, i + 1).coefficients
        )


def test_the_density_is_that_of_a_normal(dynamics):
    for grid in grids(dynamics):
        step = dynamics.step(grid, 1, 2)
        x, v, noise = torch.randn(3, 2, 3, 4, 5)
        if not dynamics.stochastic:
            with pytest.raises(ValueError, match="std 0 has no density"):
                step.log_prob(x, v, x)
            continue
        x_next = step.sample(x, v, noise)
        expected = Normal(step.mean(x, v), step.std).log_prob(x_next)
        torch.testing.assert_close(step.log_prob(x, v, x_next), expected, atol=DENSITY, rtol=DENSITY)


def test_the_divergence_is_that_of_two_normals(dynamics):
    if not dynamics.stochastic:
        return
    step: Step = dynamics.step(shifted(10), 1, 2)
    x, v, reference = torch.randn(3, 2, 6)
    expected = kl_divergence(Normal(step.mean(x, v), step.std), Normal(step.mean(x, reference), step.std))
    torch.testing.assert_close(step.kl(x, v, reference), expected, atol=DENSITY, rtol=1e-4)
