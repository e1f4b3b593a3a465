"""Noising clean samples, and coming back."""

import pytest
import torch
from diffusers import DDIMScheduler

from samplers.path import RectifiedFlow, VariancePreserving, clean, noised, target
from samplers.times import Times

ROUNDING = 1e-4
"""x0 = (x - sigma v) / alpha loses digits where alpha is small."""


def paths():
    table = DDIMScheduler().alphas_cumprod
    yield RectifiedFlow()
    for prediction in ("epsilon", "v_prediction", "sample"):
        yield VariancePreserving(table, prediction)


@pytest.mark.parametrize("path", list(paths()), ids=lambda path: path.prediction)
def test_a_perfect_answer_gives_the_clean_sample_back(path):
    x0, noise = torch.randn(2, 6, 3, 4)
    t = torch.linspace(0.05, 0.9, 6)
    x = noised(path, x0, noise, t)
    torch.testing.assert_close(clean(path, x, target(path, x0, noise, t), t), x0, atol=ROUNDING, rtol=ROUNDING)


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


@pytest.mark.parametrize(
    "wrong", [{"low": 0.0}, {"low": 0.9, "high": 0.5}, {"high": 1.1}, {"shift": 0.0}, {"std": -1.0}]
)
def test_impossible_times_are_refused(wrong):
    with pytest.raises(ValueError, match="times need"):
        Times(**wrong)
