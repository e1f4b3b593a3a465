"""Golden numbers of each rule, computed by other programs from the papers' formulas."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from samplers import Step, read_grid
from samplers.dynamics.coefficient_preserving import CoefficientPreserving
from samplers.dynamics.dance_sde import DanceSDE
from samplers.dynamics.ddim import DDIM
from samplers.dynamics.flow_sde import FlowSDE
from samplers.dynamics.ode import ODE
from samplers.paths.grid import flow_grid
from tests.support.gaussian import Gaussian, shifted

PRINTED = 1e-6
"""The golden numbers have eight digits; coefficients and log densities here are float32."""
HARNESS = 1e-4
"""The golden variances have five digits."""

X, V, X_NEXT = torch.tensor([0.5]), torch.tensor([0.3]), torch.tensor([0.4])
POINT = flow_grid(torch.tensor([0.8, 0.6], dtype=torch.float64))


@pytest.mark.parametrize(
    ("dynamics", "mean", "std", "log_prob"),
    [
        (ODE(), 0.44, 0.0, None),
        (DanceSDE(0.3), 0.4337, 0.13416408, 1.05820628),
        (FlowSDE(0.7), 0.3028, 0.62609903, -0.46274263),
        (CoefficientPreserving(0.7), 0.25654081, 0.53460391, -0.32871435),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "step") else None,
)
def test_one_step_of_a_flow(dynamics, mean, std, log_prob):
    step = dynamics.step(POINT, 0, 1)
    assert step.mean(X, V).item() == pytest.approx(mean, abs=PRINTED)
    assert step.std.item() == pytest.approx(std, abs=PRINTED)
    if log_prob is not None:
        assert step.log_prob(X, V, X_NEXT).item() == pytest.approx(log_prob, abs=PRINTED)


@pytest.mark.parametrize(
    ("dynamics", "shift", "variances"),
    [
        (ODE(), 1, (0.18557, 0.20765, 0.24926)),
        (ODE(), 3, (0.13667, 0.17274, 0.24854)),
        (DanceSDE(0.3), 1, (0.19497, 0.21390, 0.24937)),
        (DanceSDE(0.3), 3, (0.14836, 0.18071, 0.24870)),
        (DanceSDE(1.0), 1, (0.25070, 0.24943, 0.24997)),
        (DanceSDE(1.0), 3, (0.27315, 0.25122, 0.24984)),
        (FlowSDE(0.7), 1, (0.22996, 0.23852, 0.25092)),
        (FlowSDE(0.7), 3, (0.18008, 0.20196, 0.24973)),
        (CoefficientPreserving(0.7), 1, (0.13708, 0.15043, 0.18021)),
        (CoefficientPreserving(0.7), 3, (0.10730, 0.12779, 0.17871)),
    ],
    ids=lambda value: (
        f"{type(value).__name__}{next(iter(vars(value).values()), '')}" if hasattr(value, "step") else None
    ),
)
def test_the_variance_of_a_gaussian_target(dynamics, shift, variances):
    for n, expected in zip((10, 16, 1000), variances, strict=True):
        mean, variance = Gaussian().result(dynamics, shifted(n, shift))
        assert variance == pytest.approx(expected, abs=HARNESS)
        assert mean == pytest.approx(1.0, abs=HARNESS)


def test_dancegrpo_decodes_the_last_step_without_its_noise():
    grid, target = shifted(16, 3.0), Gaussian()
    mean, variance = 0.0, 1.0
    for i in range(16):
        dynamics = DanceSDE(0.3) if i < 15 else ODE()
        mean, variance = target.through(dynamics.step(grid, i, i + 1), grid.sigma(i), mean, variance)
    assert variance == pytest.approx(0.17832, abs=HARNESS)


def test_the_harness_finds_a_score_that_lacks_its_factor():
    # score = (x0 - x) / t^2 in place of ((1 - t) x0 - x) / t^2, as several write-ups print it.
    grid, target, eta = shifted(1000, 3.0), Gaussian(), 1.0
    mean, variance = 0.0, 1.0
    for i in range(len(grid)):
        t, dt = grid.sigma(i), grid.sigma(i + 1) - grid.sigma(i)
        wrong = Step.of(1.0, dt * (1 + eta**2 / (2 * t)), eta * math.sqrt(-dt))
        mean, variance = target.through(wrong, t, mean, variance)
    assert variance > 1


def test_flow_sde_starts_with_a_std_of_a_on_every_grid():
    for grid in (shifted(4), shifted(10, 3.0), shifted(25, 7.0), shifted(1), shifted(10, 5.0, first=0.999999)):
        for a in (0.3, 0.7, 1.0):
            assert FlowSDE(a).step(grid, 0, 1).std.item() == pytest.approx(a, abs=1e-5)


def test_two_forms_of_the_reverse_sde_agree():
    eta, grid = 0.9, shifted(10, 3.0)
    x, v = torch.randn(2, 50, dtype=torch.float64)
    for i in range(10):
        t, dt = grid.sigma(i), grid.sigma(i + 1) - grid.sigma(i)
        score = -(x - (1 - t) * (x - t * v)) / t**2
        expected = x + dt * (v - eta**2 / 2 * score)
        torch.testing.assert_close(
            DanceSDE(eta).step(grid, i, i + 1).mean(x, v), expected.float(), atol=PRINTED, rtol=1e-5
        )


def test_flow_sde_is_dance_sde_with_a_diffusion_of_its_own():
    grid = shifted(10)
    for i in range(1, 10):
        t = grid.sigma(i)
        same = DanceSDE(0.7 * math.sqrt(t / (1 - t))).step(grid, i, i + 1)
        torch.testing.assert_close(FlowSDE(0.7).step(grid, i, i + 1).coefficients, same.coefficients)


@pytest.mark.parametrize(
    ("dynamics", "diffusion"),
    [
        (DanceSDE(0.3), lambda t, s: 0.3),
        (FlowSDE(0.7), lambda t, s: 0.7 * math.sqrt(t / (1 - t) if t < 1 else 1 / (1 - s))),
    ],
    ids=["dance", "flow"],
)
def test_the_divergence_of_flow_grpo_is_that_of_a_step_times_its_length(dynamics, diffusion):
    """Its code averages (mu - mu_ref)^2 / (2 g^2), where the step's variance is g^2 |dt|."""
    grid = shifted(10, 3.0)
    x, v, reference = torch.randn(3, 2, 50, dtype=torch.float64)
    for i in range(10):
        t, dt = grid.sigma(i), grid.sigma(i + 1) - grid.sigma(i)
        g = diffusion(t, grid.sigma(i + 1))
        mu, mu_reference = (x + dt * (z + g * g / (2 * t) * (x + (1 - t) * z)) for z in (v, reference))
        expected = ((mu - mu_reference) ** 2 / (2 * g * g)).mean(dim=1)
        found = -dt * dynamics.step(grid, i, i + 1).kl(x, v, reference).mean(dim=1)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("a", [0.0, 0.3, 0.7, 1.0])
def test_coefficients_are_preserved(a):
    grid = shifted(10, 3.0)
    for i in range(10):
        t, s = grid.sigma(i), grid.sigma(i + 1)
        step = CoefficientPreserving(a).step(grid, i, i + 1)
        # x = (1 - t) x0 + t eps and v = eps - x0 give x' = p x0 + q eps + std z:
        of_clean = (1 - t) * step.a - step.b
        of_noise = t * step.a + step.b
        assert of_clean.item() == pytest.approx(1 - s, abs=PRINTED)
        assert of_noise.item() ** 2 + step.std.item() ** 2 == pytest.approx(s * s, abs=PRINTED)
        assert step.std.item() <= s + PRINTED
    assert CoefficientPreserving(a).step(grid, 9, 10).std == 0


@pytest.mark.parametrize("a", [0.0, 0.7, 1.0])
def test_a_target_without_spread_is_reached_exactly(a):
    grid, target = shifted(8), Gaussian(m=1.0, v0=0.0)
    mean, variance = 0.0, 1.0
    for i in range(8):
        step = CoefficientPreserving(a).step(grid, i, i + 1)
        mean, variance = target.through(step, grid.sigma(i), mean, variance)
        assert variance == pytest.approx(grid.sigma(i + 1) ** 2, abs=PRINTED)
        assert mean == pytest.approx(1 - grid.sigma(i + 1), abs=PRINTED)


def test_more_than_all_noise_cannot_be_drawn_anew():
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        CoefficientPreserving(1.5)


def test_a_flow_is_integrated_exactly_along_a_straight_line():
    assert ODE().step(shifted(1), 0, 1).mean(X, V).item() == pytest.approx(0.2, abs=PRINTED)


def test_euler_is_of_first_order():
    target, x0 = Gaussian(), 0.8
    errors = []
    for n, printed in ((8, -5.40e-2), (16, -2.79e-2), (32, -1.42e-2), (64, -7.17e-3), (128, -3.60e-3)):
        grid, x = shifted(n, first=0.95, last=0.05), x0
        for i in range(n):
            slope, offset = target.velocity(grid.sigma(i))
            step = ODE().step(grid, i, i + 1)
            x = step.a.item() * x + step.b.item() * (slope * x + offset)
        errors.append(x - target.flow(x0, 0.95, 0.05))
        assert errors[-1] == pytest.approx(printed, rel=5e-3)
    assert math.log2(errors[2] / errors[4]) / 2 == pytest.approx(1.0, abs=0.02)


def stable_diffusion(steps=50, **settings):
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        **{"set_alpha_to_one": False, "steps_offset": 1, **settings},
    )
    scheduler.set_timesteps(steps)
    return scheduler, read_grid(scheduler, scheduler.timesteps)


@pytest.mark.parametrize(
    ("eta", "mean", "std", "log_prob"),
    [(0.0, 0.52445025, 0.0, None), (0.5, 0.51657296, 0.22723164, 0.51993), (1.0, 0.49154512, 0.45446327, -0.134479)],
)
def test_one_step_of_ddim(eta, mean, std, log_prob):
    scheduler, grid = stable_diffusion()
    assert scheduler.timesteps[:2].tolist() == [981, 961]
    step = DDIM(eta).step(grid, 0, 1)
    assert step.mean(X, V).item() == pytest.approx(mean, abs=PRINTED)
    assert step.std.item() == pytest.approx(std, abs=PRINTED)
    if log_prob is not None:
        assert step.log_prob(X, V, torch.tensor([0.45])).item() == pytest.approx(log_prob, abs=1e-5)


def test_with_eta_one_ddim_is_the_posterior():
    scheduler, grid = stable_diffusion()
    x, eps = torch.randn(2, 20, dtype=torch.float64)
    for i in (0, 20, 48):
        t = scheduler.timesteps[i]
        abar, before = (scheduler.alphas_cumprod[k].double() for k in (t, t - 20))
        x0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
        alpha = abar / before
        mean = before.sqrt() * (1 - alpha) / (1 - abar) * x0 + alpha.sqrt() * (1 - before) / (1 - abar) * x
        step = DDIM(1.0).step(grid, i, i + 1)
        torch.testing.assert_close(step.mean(x, eps), mean.float(), atol=1e-5, rtol=1e-5)
        assert step.std.item() ** 2 == pytest.approx(((1 - before) / (1 - abar) * (1 - alpha)).item(), abs=PRINTED)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("settings", [{}, {"timestep_spacing": "trailing"}, {"set_alpha_to_one": True}], ids=str)
@pytest.mark.parametrize("steps", [10, 7], ids=["N divides T", "N does not divide T"])
def test_ddim_steps_as_diffusers_does(eta, prediction, settings, steps):
    scheduler, grid = stable_diffusion(steps, prediction_type=prediction, **settings)
    x, v, noise = torch.randn(3, 2, 4, 3, 3)
    for i, t in enumerate(scheduler.timesteps):
        native = scheduler.step(v, t, x, eta=eta, variance_noise=noise if eta else None, return_dict=False)[0]
        ours = DDIM(eta).step(grid, i, i + 1).sample(x, v, noise)
        torch.testing.assert_close(ours, native, atol=2e-5, rtol=2e-5)
        if eta == 0:
            torch.testing.assert_close(ODE().step(grid, i, i + 1).mean(x, v), native, atol=2e-5, rtol=2e-5)


def test_how_the_first_step_of_flow_sde_is_weighed_against_the_others():
    """What GRPO-Guard's 1 / |b| and the authors' 1 / |dt| differ by: 1 + a^2 / 2 at all steps but the first."""
    a, grid = 0.7, flow_grid(torch.tensor([1.0, 0.8, 0.6, 0.3, 0.1], dtype=torch.float64))
    for i in range(len(grid)):
        step = FlowSDE(a).step(grid, i, i + 1)
        share = abs(step.b.item()) / (grid.departures[i][1] - grid.arrivals[i][1])
        assert share == pytest.approx(1.0 if i == 0 else 1 + a**2 / 2, rel=PRINTED)


@pytest.mark.parametrize(("time", "share"), [(251, 0.96), (26, 0.82), (1, 0.29)])
def test_what_a_jump_to_the_last_level_keeps_of_the_clean_prediction(time, share):
    """SD1.5 ends at sigma .029, not 0: what ReFL climbs has this share of the clean prediction's gradient."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(40)
    grid = read_grid(scheduler, scheduler.timesteps)
    i = scheduler.timesteps.tolist().index(time)
    alpha, sigma = grid.departures[i]
    assert ODE().step(grid, i, len(grid)).b.item() / (-sigma / alpha) == pytest.approx(share, abs=0.005)
