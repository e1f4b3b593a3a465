"""What is read from diffusers' schedulers, against what their own steps do."""

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)

from samplers import Act, Conductor, Look, Native, Skip, read_grid, stand_in_for, take
from samplers.dynamics.coefficient_preserving import CoefficientPreserving
from samplers.dynamics.ddim import DDIM
from samplers.dynamics.ode import ODE
from samplers.paths.schedules import remembers

ROUNDING = 1e-5
"""Of the largest number of a state: schedulers compute in float32 and take roots in another order."""
FOUR_DECIMALS = 5.1e-5
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}

DETERMINISTIC = {
    "DDIM": DDIMScheduler(**SD, clip_sample=False),
    "DDIM v": DDIMScheduler(**SD, clip_sample=False, prediction_type="v_prediction"),
    "DDIM of no noise": DDIMScheduler(
        **SD,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ),
    "DDIM sample": DDIMParallelScheduler(**SD, clip_sample=False, prediction_type="sample"),
    "CogVideoX": CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "Euler": EulerDiscreteScheduler(**SD),
    "Euler v, Karras": EulerDiscreteScheduler(**SD, prediction_type="v_prediction", use_karras_sigmas=True),
    "EDM": EDMEulerScheduler(),
    "EDM v": EDMEulerScheduler(prediction_type="v_prediction", sigma_schedule="exponential"),
    "DPM-Solver++ 1": DPMSolverMultistepScheduler(**SD, solver_order=1),
    "DPM-Solver++ 1 v": DPMSolverMultistepScheduler(**SD, solver_order=1, prediction_type="v_prediction"),
    "DPM-Solver++ 1 flow": DPMSolverMultistepScheduler(**FLOW, solver_order=1),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow, counted from data": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
}


def run(scheduler, x, steps=5):
    """Step as a pipeline does; return the states."""
    scheduler.set_timesteps(steps)
    states = [x]
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(states[-1], t) if hasattr(scheduler, "scale_model_input") else states[-1]
        states.append(scheduler.step(torch.tanh(seen) + 0.1, t, states[-1], return_dict=False)[0])
    return states


def looked_at(scheduler, x, script):
    made = stand_in_for(scheduler)
    made.conduct(Conductor(script))
    return run(made, x)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_step_that_is_read_is_the_schedulers_own(name):
    seen = []
    looks = [Look(lambda x, v, grid: seen.append((x, v, grid)))] * 5
    states = looked_at(DETERMINISTIC[name], torch.randn(2, 3, 4), looks)
    assert len(seen) == 5
    for k, (x, v, grid) in enumerate(seen):
        mean = take(ODE(), grid, k, k + 1).mean(x, v)
        torch.testing.assert_close(mean, states[k + 1], atol=ROUNDING * states[k + 1].abs().max().item(), rtol=0)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_noise_levels_are_kept_with_noise(name):
    scheduler = stand_in_for(DETERMINISTIC[name])
    scheduler.set_timesteps(5)
    grid = read_grid(scheduler, scheduler.timesteps)
    for k in range(5):
        (cx, cv), (ex, ev) = grid.linear(k)
        step = DDIM(eta=1.0).step(grid, k, k + 1)
        alpha, sigma = grid.arrivals[k]
        # What is in front of (x0, eps), and the noise: a x + b v = alpha' x0 + kept eps.
        kept = (step.b - alpha * cv) / ev if abs(ev) > 1e-6 else (step.a - alpha * cx) / ex
        assert float(kept**2 + step.std**2) == pytest.approx(sigma**2, rel=1e-3, abs=1e-4)
        assert float(step.std) <= sigma + 1e-6
        assert bool(step.std > 0) == (sigma > 0)


@pytest.mark.parametrize(
    "cls", [DDPMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler, SCMScheduler, DDPMWuerstchenScheduler]
)
def test_schedulers_with_noise_of_their_own_have_a_grid(cls):
    scheduler = cls()
    scheduler.set_timesteps(4, **({"intermediate_timesteps": None} if cls is SCMScheduler else {}))
    grid = read_grid(scheduler, scheduler.timesteps)
    ratios = [sigma / max(alpha, 1e-9) for alpha, sigma in (*grid.departures, grid.arrivals[-1])]
    assert len(grid) == 4
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] <= 0.1


def test_trigflow_predicts_as_its_scheduler_does():
    scheduler = SCMScheduler()
    scheduler.set_timesteps(3, intermediate_timesteps=None)
    x, v = torch.randn(2, 2, 4)
    clean = scheduler.step(v, scheduler.timesteps[0], x, generator=torch.Generator()).pred_original_sample
    (cx, cv), (ex, ev) = read_grid(scheduler, scheduler.timesteps).linear(0)
    torch.testing.assert_close(cx * x + cv * v, clean)
    t = scheduler.timesteps[0]
    torch.testing.assert_close(t.cos() * clean + scheduler.config.sigma_data * t.sin() * (ex * x + ev * v), x)


def test_flow_steps_above_one_belong_to_an_exploding_path():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=list(np.linspace(1, 0, 5)[:-1]))
    scheduler.sigmas = torch.tensor([80.0, 10.0, 1.0, 0.002, 0.002])  # as pipelines set them: the last one is not 0
    grid = read_grid(scheduler, scheduler.timesteps)
    assert grid.departures[0] == (1.0, 80.0)
    assert grid.prediction == "epsilon"
    assert not grid.flow
    x, v = torch.randn(2, 2, 4)
    for k, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(v, t, x).prev_sample
        torch.testing.assert_close(ODE().step(grid, k, k + 1).mean(x, v), expected, atol=1e-4, rtol=1e-4)


def test_tokens_have_times_of_their_own():
    base = FlowMatchEulerDiscreteScheduler(shift=3.0)
    base.set_timesteps(4)
    t = base.timesteps[1]
    x, v = torch.randn(2, 2, 5, 3)
    times = t.expand(2, 5).clone()
    times[:, 0] = 0.0  # a token that is given
    times[0, 1] = base.timesteps[2]
    own = base.step(v, t, x, per_token_timesteps=times).prev_sample
    seen = []
    made = stand_in_for(FlowMatchEulerDiscreteScheduler(shift=3.0))
    act = Act(CoefficientPreserving(0.5), lambda x: torch.ones_like(x))
    for action in (Look(lambda *what: seen.append(what)), act):
        conductor = Conductor([Native(), action])
        made.conduct(conductor)
        made.set_timesteps(4)
        made.step(v, made.timesteps[0], x)
        after = made.step(v, t, x, per_token_timesteps=times).prev_sample
    ((state, out, grid),) = seen
    torch.testing.assert_close(take(ODE(), grid, 1, 2).mean(state, out), own, atol=1e-6, rtol=1e-5)
    record = conductor.records[1]
    assert record.step.random
    assert torch.equal(after[:, 0], x[:, 0])
    density = record.step.log_prob(record.x, record.model_output, record.x_next)
    assert torch.equal(density[:, 0], torch.zeros_like(density[:, 0]))
    z = (record.x_next - record.step.mean(record.x, record.model_output)) / record.step.std.clamp(min=1e-9)
    torch.testing.assert_close(z[:, 1:], torch.ones_like(z[:, 1:]), atol=1e-3, rtol=0)


MULTISTEP = [
    UniPCMultistepScheduler(**FLOW),
    DPMSolverMultistepScheduler(**SD),
    DPMSolverSinglestepScheduler(**SD),
    DEISMultistepScheduler(**SD),
    LMSDiscreteScheduler(**SD),
]


@pytest.mark.parametrize("base", MULTISTEP, ids=lambda base: type(base).__name__)
def test_a_solver_with_a_memory_is_itself_alone_and_of_first_order_among_others(base):
    x = torch.randn(2, 4)
    own = run(type(base).from_config(base.config), x)
    assert all(torch.equal(a, b) for a, b in zip(own, looked_at(base, x, [Native()] * 5), strict=True))
    seen = []
    states = looked_at(base, x, [Skip(), Native(), Look(lambda *what: seen.append(what))])
    ((state, v, grid),) = seen
    torch.testing.assert_close(take(ODE(), grid, 2, 3).mean(state, v), states[3])


def test_what_remembers():
    assert all(remembers(base) for base in MULTISTEP)
    assert not any(remembers(base) for base in DETERMINISTIC.values())


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (3.0, [0.999999, 0.9643, 0.9232, 0.8752, 0.8184, 0.7504, 0.6672, 0.5633, 0.4298, 0.2519, 0]),
        (5.0, [0.6825, 0.5568, 0.3594, 0]),
    ],
)
def test_the_grid_of_unipc_on_flows_starts_below_one(shift, expected):
    scheduler = UniPCMultistepScheduler(**{**FLOW, "flow_shift": shift})
    scheduler.set_timesteps(10)
    grid = read_grid(scheduler, scheduler.timesteps)
    found = [grid.sigma(i) for i in range(11)][-len(expected) :]
    assert found == pytest.approx(expected, abs=FOUR_DECIMALS)
    assert grid.sigma(0) == pytest.approx(0.999999, abs=1e-7)
    assert scheduler.timesteps[0] == 999
    assert grid.flow


def test_a_scheduler_that_keeps_no_marginals_is_refused():
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="IPNDMScheduler keeps neither sigmas nor a table of alphas"):
        read_grid(scheduler, scheduler.timesteps)
