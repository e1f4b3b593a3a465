"""Grids as diffusers' schedulers set them up, against grids computed from the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from samplers import read_grid, read_path
from samplers.paths.grid import flow_grid
from samplers.paths.path import RectifiedFlow, VariancePreserving

FOUR_DECIMALS = 5.1e-5


def sigmas(grid):
    return [grid.sigma(i) for i in range(len(grid) + 1)]


def flow(n, *, start=None, mu=None, **settings):
    scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    given = {"num_inference_steps": n} if start is None else {"sigmas": start}
    scheduler.set_timesteps(**given, mu=mu)
    return read_grid(scheduler, scheduler.timesteps)


def dynamic_shift(tokens, max_tokens=4096, max_shift=1.15):
    slope = (max_shift - 0.5) / (max_tokens - 256)
    return slope * (tokens - 256) + 0.5


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (  # sigma_max and sigma_min are shifted when the scheduler is made, and again when its steps are set
            flow(10, shift=3.0),
            [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0],
        ),
        (
            flow(10, start=np.linspace(1, 0, 11)[:-1], shift=3.0),
            [1, 0.9643, 0.9231, 0.8750, 0.8182, 0.7500, 0.6667, 0.5625, 0.4286, 0.2500, 0],
        ),
        (flow(10, start=np.linspace(1, 0, 11)[:-1], shift=7.0), [1, 0.6364, 0.4375, 0]),
        (flow(16, start=np.linspace(1, 0, 17)[:-1], shift=3.0), [1, 0.4091, 0.3000, 0.1667, 0]),
        (
            flow(
                10,
                start=np.linspace(1, 0.1, 10),
                mu=dynamic_shift(4096, 8192, 0.9),
                use_dynamic_shifting=True,
                shift_terminal=0.02,
            ),
            [1, 0.2015, 0.02, 0],
        ),
    ],
    ids=["SD3", "plain shift 3", "HunyuanVideo", "DanceGRPO", "Qwen-Image"],
)
def test_grids_of_flow_pipelines(grid, expected):
    found = sigmas(grid)
    shown = found if len(expected) == len(found) else [found[0], *found[1 - len(expected) :]]
    assert shown == pytest.approx(expected, abs=FOUR_DECIMALS)
    assert found == sorted(set(found), reverse=True)
    assert grid.flow
    assert grid.prediction == "flow"


@pytest.mark.parametrize(("pixels", "mu", "shift"), [(512, 0.63, 1.878), (1024, 1.15, 3.158)])
def test_flux_shifts_by_the_number_of_tokens(pixels, mu, shift):
    assert dynamic_shift((pixels // 16) ** 2) == pytest.approx(mu, abs=1e-3)
    start = np.linspace(1, 0.1, 10)
    k = math.exp(dynamic_shift((pixels // 16) ** 2))
    assert k == pytest.approx(shift, abs=1e-3)
    grid = flow(10, start=start, mu=dynamic_shift((pixels // 16) ** 2), use_dynamic_shifting=True)
    assert sigmas(grid) == pytest.approx([*(k * start / (1 + (k - 1) * start)), 0], abs=FOUR_DECIMALS)


def test_a_flow_has_alpha_one_minus_sigma_and_ends_in_data():
    grid = flow(5)
    assert len(grid) == 5
    assert grid.arrivals[:-1] == grid.departures[1:]
    assert grid.arrivals[-1] == (1.0, 0.0)
    assert all(alpha == 1 - sigma for alpha, sigma in grid.departures)


@pytest.mark.parametrize("steps", [10, 7])
def test_ddim_jumps_by_whole_steps_of_training(steps):
    scheduler = DDIMScheduler(set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    grid = read_grid(scheduler, scheduler.timesteps)
    for (alpha, sigma), t in zip(grid.departures, scheduler.timesteps.tolist(), strict=True):
        assert alpha**2 == pytest.approx(scheduler.alphas_cumprod[t].item())
        assert alpha**2 + sigma**2 == pytest.approx(1)
    after = [max(t - 1000 // steps, 0) for t in scheduler.timesteps.tolist()]
    assert [alpha**2 for alpha, _ in grid.arrivals] == pytest.approx(scheduler.alphas_cumprod[after].tolist())
    assert not grid.flow


def test_clean_and_noise_come_back_whatever_is_predicted():
    x0, eps = torch.randn(2, 8, dtype=torch.float64)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    for prediction in ("epsilon", "v_prediction", "sample"):
        scheduler.register_to_config(prediction_type=prediction)
        grid = read_grid(scheduler, scheduler.timesteps)
        for i in range(4):
            alpha, sigma = grid.departures[i]
            v = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}[prediction]
            x = alpha * x0 + sigma * eps
            (cx, cv), (ex, ev) = grid.linear(i)
            torch.testing.assert_close(cx * x + cv * v, x0, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(ex * x + ev * v, eps, atol=1e-6, rtol=1e-6)


def test_the_end_of_a_grid_is_a_sigma_too():
    assert sigmas(flow_grid(torch.tensor([1.0, 0.5, 0.25]))) == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("cls", [FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler])
def test_a_scheduler_without_a_first_order_grid_is_refused(cls):
    scheduler = cls()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"first-order"):
        read_grid(scheduler, scheduler.timesteps)


def test_paths_of_schedulers():
    assert read_path(FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)) == RectifiedFlow(500)
    path = read_path(PNDMScheduler(prediction_type="v_prediction"))
    assert isinstance(path, VariancePreserving)
    assert path.prediction == "v_prediction"


def test_an_unknown_path_or_prediction_is_refused():
    scheduler = DDIMScheduler()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="'score' of DDIMScheduler is unknown"):
        read_path(scheduler)
    del scheduler.alphas_cumprod
    with pytest.raises(ValueError, match="neither flow sigmas nor alphas_cumprod nor a preconditioning"):
        read_path(scheduler)
