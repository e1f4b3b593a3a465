"""Noising clean samples, and coming back."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    MiniMaxH3Scheduler,
    SCMScheduler,
)

from samplers import Conductor, LoopLayout, Skip, Visit, read_path, stand_in_for
from samplers.paths.path import (
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    clean,
    noised,
    share_of_noise,
    target,
)
from samplers.paths.times import Times
from samplers.stand_in.row_times import RowTimes
from samplers.stand_in.scheduler import NEARBY

ROUNDING = 1e-4
"""x0 = (x - sigma v) / alpha loses digits where alpha is small."""


TOLD = 1e-5
"""Times in float32, and logarithms of them."""
OF_NOISE = {"prediction_type": "v_prediction", "timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0}
SCHEDULERS = {
    "flow": FlowMatchEulerDiscreteScheduler(),
    "flow, counted from data": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "epsilon": DDIMScheduler(clip_sample=False),
    "v": DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "sample": DDIMScheduler(clip_sample=False, prediction_type="sample"),
    "EDM": EDMEulerScheduler(),
    "EDM v": EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0),
    "Euler told of its noise": EulerDiscreteScheduler(**OF_NOISE),
    "trigflow": SCMScheduler(),
}
EXPLODING = FlowMatchEulerDiscreteScheduler()
EXPLODING.register_to_config(sigma_max=80.0, sigma_min=0.002)  # as pipelines do it


@pytest.mark.parametrize("scheduler", [*SCHEDULERS.values(), EXPLODING], ids=[*SCHEDULERS, "flow above one"])
def test_a_perfect_answer_gives_the_clean_sample_back(scheduler):
    path = read_path(scheduler)
    x0, noise = torch.randn(2, 6, 3, 4)
    t = torch.linspace(0.05, 0.9, 6)
    x = noised(path, x0, noise, t)
    torch.testing.assert_close(clean(path, x, target(path, x0, noise, t), t), x0, atol=ROUNDING, rtol=ROUNDING)
    step = 1e-2 * torch.randn(6, 3, 4)  # of the answer, and what it does to the noise that is predicted
    moved = clean(path, x, target(path, x0, noise, t) + step, t)
    (alpha, sigma), share = path.marginal(t), share_of_noise(path, t)
    found = (x - alpha[:, None, None] * moved) / sigma[:, None, None] - noise
    torch.testing.assert_close(found, share[:, None, None] * step, atol=10 * ROUNDING, rtol=ROUNDING)
    alpha, sigma = path.marginal(path.time(path.network_time(t)))
    torch.testing.assert_close((sigma / alpha).float(), torch.div(*path.marginal(t)[::-1]), atol=TOLD, rtol=TOLD)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if "flow" not in name or name == "trigflow"])
def test_schedulers_find_the_clean_sample_in_a_perfect_answer(name):
    """What noise, scale and answer are is the scheduler's to say: its own step takes them for the same."""
    scheduler = SCHEDULERS[name]
    path, (x0, noise) = read_path(scheduler), torch.randn(2, 2, 3, 4)
    scheduler.set_timesteps(4, **({"intermediate_timesteps": None} if name == "trigflow" else {}))
    for step in scheduler.timesteps[:4]:
        t = path.time(step.expand(2)).float()
        x = noised(path, x0, noise, t)
        if hasattr(scheduler, "scale_model_input"):
            seen = scheduler.scale_model_input(x, step)
            torch.testing.assert_close(seen, x * path.input_scale(t)[:, None, None], atol=TOLD, rtol=TOLD)
        out = scheduler.step(target(path, x0, noise, t), step, x).pred_original_sample
        torch.testing.assert_close(out, x0, atol=ROUNDING, rtol=ROUNDING)


def test_equal_times_have_equal_noise_on_paths_without_end():
    t = torch.linspace(0.1, 0.9, 5)
    for name, spread in (
        ("flow", 1.0),
        ("EDM", 0.5),
        ("EDM v", 1.0),
        ("Euler told of its noise", 1.0),
        ("trigflow", 0.5),
    ):
        alpha, sigma = read_path(SCHEDULERS[name]).marginal(t)
        torch.testing.assert_close(sigma / alpha / spread, t / (1 - t), atol=TOLD, rtol=TOLD)


def test_an_exploding_path_ends_where_its_scheduler_does():
    path = read_path(SCHEDULERS["EDM"])
    assert isinstance(path, VarianceExploding)
    ends = path.marginal(torch.tensor([0.0, 1.0]))[1]
    assert ends.tolist() == pytest.approx([0.002, 80.0])
    assert path.network_time(torch.tensor([1.0])).item() == pytest.approx(math.log(80) / 4)


def rows_at(scheduler, x, times, answer, rows):
    """Conduct a call of two rounds with guidance by a question, as pipelines do it; return what is seen and heard."""
    made, seen, heard = stand_in_for(scheduler), [], []
    layout = LoopLayout(((0, 0),) * 2, {0: x.shape[1:]})
    made.conduct(Conductor([Skip(x), Visit(x, heard.append)], times=times, layout=layout))
    made.set_timesteps(4)
    made.__dict__["_outputs"] = 2
    state = torch.zeros_like(x)
    for t in made.timesteps:
        seen.append(made.scale_model_input(torch.cat([state, state]), t))
        asked = made.step(answer(torch.cat([state, state])), t, torch.cat([state, state]), return_dict=False)[1]
        made._step_index -= 1
        asked = asked.chunk(2)[0]
        state = made.step(asked, t, state, return_dict=False, pred_original_sample=asked)[0]
    return seen[1][:rows], heard[0]


def test_rows_at_times_of_their_own_are_preconditioned_each():
    x, times = torch.randn(2, 3, 4), torch.tensor([[-1.0, 0.5], [-0.5, 1.0]])
    path = read_path(SCHEDULERS["EDM"])
    seen, heard = rows_at(SCHEDULERS["EDM"], x, times.as_subclass(RowTimes), torch.tanh, 2)
    scale = path.input_scale(path.time(times[1])).float()
    torch.testing.assert_close(seen, x * scale[:, None, None], atol=TOLD, rtol=TOLD)
    torch.testing.assert_close(heard, torch.tanh(x), atol=ROUNDING, rtol=ROUNDING)


def test_sigmas_are_those_of_the_times_that_are_offered():
    made = stand_in_for(EXPLODING)
    made.set_timesteps(4)
    own = made.sigmas
    made.conduct(Conductor(times=torch.tensor([2000.0, 500.0])))
    assert made.sigmas.tolist() == pytest.approx([2.0, 0.5, 0.5 * (1 - NEARBY)])
    made.conduct(None)
    assert made.sigmas is own
    assert not hasattr(stand_in_for(DDIMScheduler()), "sigmas")


def test_the_ends_of_a_flow():
    x0, noise = torch.randn(2, 2, 5)
    path = RectifiedFlow(500)
    torch.testing.assert_close(noised(path, x0, noise, torch.zeros(2)), x0)
    torch.testing.assert_close(noised(path, x0, noise, torch.ones(2)), noise)
    assert path.network_time(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 250, 500]


def test_diffusion_times_are_whole_steps():
    path = VariancePreserving(DDIMScheduler().alphas_cumprod)
    assert path.network_time(torch.tensor([0.0, 0.5004, 1.0])).tolist() == [0, 500, 999]
    alpha, sigma = path.marginal(torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(2))


def uniform(n=20_000):
    return (torch.arange(n) + 0.5) / n


def test_times_stay_between_low_and_high():
    for distribution in ("uniform", "logit_normal"):
        t = Times(distribution, shift=3.0, low=0.1, high=0.9)(uniform())
        assert t.min() >= 0.1
        assert t.max() <= 0.9
    assert Times("logit_normal")(torch.tensor([0.0, 1.0])).isfinite().all()


def test_a_shift_moves_the_median():
    for k in (1.0, 3.0, 7.0):
        assert Times(shift=k, low=1e-6)(uniform()).median().item() == pytest.approx(k / (k + 1), abs=1e-3)


def test_shifts_compose_and_invert():
    u = uniform(100)
    low = 1e-9
    torch.testing.assert_close(Times(shift=2.0, low=low)(Times(shift=3.0, low=low)(u)), Times(shift=6.0, low=low)(u))
    torch.testing.assert_close(Times(shift=1 / 3, low=low)(Times(shift=3.0, low=low)(u)), u)


def test_the_logit_normal_has_its_mean_and_spread():
    t = Times("logit_normal", low=1e-9, mean=0.5, std=2.0)(uniform())
    logit = torch.logit(t)
    assert logit.mean().item() == pytest.approx(0.5, abs=1e-2)
    assert logit.std().item() == pytest.approx(2.0, abs=1e-2)


def test_the_samplers_own_times_come_once_each():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)  # as Stable Diffusion 3 ships
    scheduler.set_timesteps(10)
    own = read_path(scheduler).time(scheduler.timesteps).float()
    times, u = Times("sampler", low=1e-3), torch.rand(50)
    drawn = torch.stack([times.among(own, u, k) for k in range(len(own))], dim=1)
    assert torch.equal(drawn.sort(dim=1).values, own.sort().values.expand(50, -1))
    assert own.mean().item() == pytest.approx(0.66, abs=5e-3)  # of the authors' ten steps
    assert Times("sampler", high=0.99).among(own, u, 0).max() < 0.99
    with pytest.raises(ValueError, match=r"no step of the sampler lies between times\.low 0\.01 and times\.high 0\.02"):
        Times("sampler", low=0.01, high=0.02).among(own, u, 0)
    with pytest.raises(ValueError, match="shifted already"):
        Times("sampler", shift=3.0)


@pytest.mark.parametrize(
    "wrong", [{"low": 0.0}, {"low": 0.9, "high": 0.5}, {"high": 1.1}, {"shift": 0.0}, {"std": -1.0}]
)
def test_impossible_times_are_refused(wrong):
    with pytest.raises(ValueError, match="times need"):
        Times(**wrong)


def test_a_flow_that_counts_its_times_in_another_way_is_refused():
    with pytest.raises(ValueError, match=r"MiniMaxH3Scheduler has neither .* so its forward process is unknown"):
        read_path(MiniMaxH3Scheduler())
